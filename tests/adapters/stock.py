"""The adapter of docs/adapters.md with the API of the original Snakepit."""

from typing import Any

from snakepit_bridge import SessionContext
from snakepit_bridge.base_adapter import BaseAdapter, tool
from snakepit_bridge.logging_config import get_logger

logger = get_logger(__name__)


class StockAdapter(BaseAdapter):
    def initialize(self) -> None:
        self.items = {"tea": 3}

    def execute_tool(self, tool_name: str, arguments: dict[str, Any], context: SessionContext) -> Any:
        logger.info("tool %s in session %s", tool_name, context.session_id)
        if tool_name == "items":
            return sorted(self.items)
        return self.call_tool(tool_name, **arguments)

    @tool(description="Count an item", required_variables=["shop"])
    def count(self, item: str) -> dict[str, Any]:
        return {"item": item, "count": self.items.get(item, 0), "session": self.session_id}
