"""The style of the original's template: no base class, `execute_tool` for any name, asynchronous `initialize`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from snakepit_bridge.logging_config import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

logger = get_logger(__name__)

_cleaned: list[str] = []


class Described:
    """An object that describes itself."""

    def to_dict(self) -> dict[str, Any]:
        return {"name": "tea"}


class PlainAdapter:
    """Serves any name."""

    def __init__(self) -> None:
        self.session_context: Any = None
        self.initialized = False

    def set_session_context(self, session_context: Any) -> None:
        self.session_context = session_context
        logger.info("context of %s", session_context.session_id)

    async def initialize(self) -> None:
        self.initialized = True

    async def cleanup(self) -> None:
        _cleaned.append(self.session_context.session_id)
        self.initialized = False

    async def execute_tool(self, tool_name: str, arguments: dict[str, Any], context: Any) -> Any:
        assert context is self.session_context
        assert self.initialized
        if tool_name == "refuse":
            raise NotImplementedError(f"unknown tool: {tool_name}")
        if tool_name == "letters":
            return self._letters(**arguments)
        if tool_name == "opaque":
            return {"value": self, "items": [Described()]}
        if tool_name == "cleaned":
            return list(_cleaned)
        return {"tool": tool_name, "arguments": arguments, "session": context.session_id}

    async def _letters(self, text: str) -> AsyncIterator[dict[str, str]]:
        for letter in text:
            yield {"letter": letter}
