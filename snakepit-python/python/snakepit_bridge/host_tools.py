"""The tools of the host as attributes."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from snakepit_bridge.host_stream import HostStream
    from snakepit_bridge.session_context import SessionContext


class HostTools:
    """The tools of the host. Each is an attribute, or an item if its name is not an identifier.

    >>> context.host.discount(item="tea")  # doctest: +SKIP
    0.5
    >>> await context.host.discount.call_async(item="tea")  # doctest: +SKIP
    0.5
    >>> for price in context.host.prices.stream(item="tea"):  # doctest: +SKIP
    ...     print(price)
    """

    __slots__ = ("_context",)

    def __init__(self, context: SessionContext) -> None:
        self._context = context

    def __getattr__(self, name: str) -> HostTool:
        """Return a tool. Its call fails if the host has no such tool."""
        # Inspection and copying ask for special names.
        if name.startswith("__"):
            raise AttributeError(f"`{name}` is not the name of a host tool; use `host[{name!r}]`", name=name, obj=self)
        return HostTool(self._context, name)

    def __getitem__(self, name: str) -> HostTool:
        """Return a tool with any name."""
        return HostTool(self._context, name)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the tools."""
        return iter(self._context.host_tools)

    def __contains__(self, name: object) -> bool:
        """Return whether the host has a tool of this name."""
        return name in self._context.host_tools

    def __len__(self) -> int:
        """Return the number of tools."""
        return len(self._context.host_tools)

    def __dir__(self) -> list[str]:
        """Return the names of the tools, for completion."""
        return [name for name in self._context.host_tools if name.isidentifier()]

    def __repr__(self) -> str:
        """Return a representation that requests nothing from the host."""
        return f"HostTools(session_id={self._context.session_id!r})"


class HostTool:
    """A tool of the host."""

    __slots__ = ("_context", "name")

    def __init__(self, context: SessionContext, name: str) -> None:
        self._context = context
        #: The name of the tool.
        self.name = name

    def __call__(self, /, **arguments: Any) -> Any:
        """Call the tool and wait for its result. Raises as :meth:`SessionContext.call_host_tool` does."""
        return self._context.call_host_tool(self.name, **arguments)

    async def call_async(self, /, **arguments: Any) -> Any:
        """Call the tool without blocking the event loop. Raises as :meth:`SessionContext.call_host_tool` does."""
        return await self._context.call_host_tool_async(self.name, **arguments)

    def stream(self, /, **arguments: Any) -> HostStream:
        """Return an iterator over the results of a tool that streams, for ``for`` or ``async for``."""
        return self._context.stream_host_tool(self.name, **arguments)

    @property
    def spec(self) -> dict[str, Any]:
        """The ``name``, ``description``, ``parameters`` and ``supports_streaming`` of the tool.

        Raises:
            NotFoundError: The host has no such tool.
        """
        spec = self._context.host_tools.get(self.name)
        if spec is None:
            from snakepit_bridge import _arguments
            from snakepit_bridge.errors import NotFoundError

            hint = _arguments.did_you_mean(self.name, self._context.host_tools, "; {}")
            raise NotFoundError(f"host tool `{self.name}` not found{hint}")
        return spec

    def __repr__(self) -> str:
        """Return a representation with the name."""
        return f"HostTool({self.name!r})"
