"""Tools that use host tools, through their session context and through a client of their own."""

from typing import Any

from snakepit_bridge import BaseAdapter, SnakepitError, tool
from snakepit_bridge.client import Client


class HostTools(BaseAdapter):
    @tool
    def listed(self) -> dict[str, Any]:
        """Lists the host tools."""
        return self.session_context.host_tools

    @tool
    def calls(self, name: str, arguments: dict[str, Any]) -> Any:
        """Calls a host tool."""
        return self.session_context.call_host_tool(name, **arguments)

    @tool
    def connects(self, address: str, name: str) -> list[str]:
        """Calls a tool as a client of the host, in every way, and returns the errors."""
        errors = []
        with Client(address) as client:
            for call in (client.call, lambda name: list(client.stream(name))):
                try:
                    errors.append(f"no error: {call(name)!r}")
                except SnakepitError as error:
                    errors.append(f"{type(error).__name__}: {error}")
        return errors
