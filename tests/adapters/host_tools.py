"""Tools that use host tools, through their session context and as clients of the host."""

import time
from typing import Any

from snakepit_bridge import BaseAdapter, SnakepitError, ToolError, tool
from snakepit_bridge.client import Client

#: Streams that outlive their calls.
KEPT: list[Any] = []


class OutOfStockError(Exception):
    """Publishes one of its attributes."""

    __snakepit_attributes__ = ("item",)

    def __init__(self, item: str, left: int) -> None:
        super().__init__(item, left, object())
        self.item = item
        self.left = left


class MissingError(Exception):
    """The exception class of a host tool's error."""


def described(error: Any) -> dict[str, Any]:
    """Describes an exception of a host tool."""
    kind = type(error)
    return {
        "kind": f"{kind.__module__}.{kind.__qualname__}",
        "text": error.args[0],
        "code": getattr(error, "code", None),
        "data": getattr(error, "data", None),
        "type_name": getattr(error, "type_name", None),
    }


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

    @tool
    def peeks(self, address: str, session: str, name: str) -> Any:
        """Reads a variable of any session, as a client of the host."""
        with Client(address) as client:
            return client.session(session).get_variable(name)

    @tool
    def global_program(self, name: str) -> int:
        """Reads a global program through the session context, and returns its size."""
        return len(self.session_context.global_programs[name])

    @tool
    def caught(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Calls a host tool that fails, and describes the exception."""
        try:
            self.session_context.call_host_tool(name, **arguments)
        except Exception as error:
            return described(error)
        return {}

    @tool
    def streamed(self, name: str, limit: int) -> list[Any]:
        """Reads results of a host tool that streams."""
        with self.session_context.stream_host_tool(name) as results:
            return [result for result, _ in zip(results, range(limit), strict=False)]

    @tool
    async def streamed_async(self, name: str, limit: int) -> list[Any]:
        """Reads results without blocking the event loop."""
        read: list[Any] = []
        async for result in self.session_context.stream_host_tool(name):
            read.append(result)
            if len(read) == limit:
                break
        return read

    @tool
    def stream_error(self, name: str) -> list[Any]:
        """Reads a stream that fails. Returns the results, and a description of the exception."""
        read: list[Any] = []
        stream = self.session_context.stream_host_tool(name)
        try:
            read.extend(stream)
        except Exception as error:
            read.append(described(error))
        assert list(stream) == [], "the stream has ended"
        return read

    @tool
    def reads_slowly(self, name: str) -> int:
        """Reads one result, and returns the number of results that the host has created once it stops."""
        stream = self.session_context.stream_host_tool(name)
        next(stream)
        count, stable = 0, 0
        while stable < 5:
            time.sleep(0.05)
            now: int = self.session_context.call_host_tool("created")
            count, stable = now, stable + 1 if now == count else 0
        # The tool continues.
        for _ in range(2 * count):
            next(stream)
        stream.close()
        return count

    @tool
    def leaves_open(self, name: str, hang: bool) -> None:
        """Keeps a stream beyond its call."""
        stream = self.session_context.stream_host_tool(name)
        next(stream)
        KEPT.append(stream)
        if hang:
            time.sleep(600)

    @tool
    def raises(self, how: str) -> None:
        """Raises an exception with parts for the caller."""
        if how == "published":
            raise OutOfStockError("tea", 3)
        raise ToolError("no such item", code="not_found", data={"left": [3, None]})
