"""The style of the original's showcase: `execute_tool` finds handlers by name, and methods with `@tool` besides."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Optional  # noqa: UP035  As in adapters of that time.

from snakepit_bridge import SessionContext, telemetry
from snakepit_bridge.base_adapter import BaseAdapter, tool


class Handler:
    """Wraps a function of a handler."""

    def __init__(self, func: Any) -> None:
        self.func = func
        self.name = func.__name__


class StreamChunk:
    """A chunk of the adapter's own class."""

    def __init__(self, data: Any, is_final: bool = False) -> None:
        self.data = data
        self.is_final = is_final


class Numbers:
    """Tools that are not declared."""

    _counters: Dict[str, int] = {}  # noqa: UP006, RUF012

    def get_tools(self) -> Dict[str, Handler]:  # noqa: UP006
        return {"ping": Handler(self.ping), "count_up": Handler(self.count_up), "steps": Handler(self.steps)}

    def ping(self, ctx: SessionContext, message: str = "pong") -> Dict[str, str]:  # noqa: UP006
        with telemetry.span("handler.ping", {"message": message}, "ping-1"):
            telemetry.emit("handler.size", {"bytes": len(message)}, correlation_id="ping-1")
        return {"message": message, "session": ctx.session_id}

    def count_up(self, ctx: SessionContext) -> int:
        self._counters[ctx.session_id] = self._counters.get(ctx.session_id, 0) + 1
        return self._counters[ctx.session_id]

    def steps(self, ctx: SessionContext, count: int = 3, endless: bool = False) -> StreamChunk:  # type: ignore[misc]
        index = 0
        while endless or index < count:
            index += 1
            yield StreamChunk({"step": index, "session": ctx.session_id}, is_final=index == count)
            time.sleep(0)
        # Never reached after a final chunk.
        raise AssertionError("the stream ended with its final chunk")


class DelegatingAdapter(BaseAdapter):
    """Delegates to a handler."""

    def __init__(self) -> None:
        super().__init__()
        self.handlers = {"numbers": Numbers()}
        self._handler_tools: Dict[str, Handler] = {}  # noqa: UP006
        for handler in self.handlers.values():
            self._handler_tools.update(handler.get_tools())
        self.session_context: Any = None

    def set_session_context(self, session_context: SessionContext) -> None:
        self.session_context = session_context

    def execute_tool(self, tool_name: str, arguments: Dict[str, Any], context: SessionContext) -> Any:  # noqa: UP006
        if tool_name in self._handler_tools:
            return self._handler_tools[tool_name].func(context, **arguments)
        return self.call_tool(tool_name, **arguments)

    @tool(description="Return all arguments")
    def echo(self, **kwargs: Any) -> Dict[str, Any]:  # noqa: UP006
        return {"echoed": kwargs, "session": self.session_id}

    # The hint contradicts the result, which the original ignores.
    @tool("Say it once more", False)
    def again(self, message: str) -> str:
        return {"again": message}  # type: ignore[return-value]

    @tool(description="Steps", supports_streaming=True)
    def streamed(self, count: int = 2) -> StreamChunk:
        return self.handlers["numbers"].get_tools()["steps"].func(self.session_context, count=count)  # type: ignore[no-any-return]

    @tool(description="Call a tool of the host", required_variables=["enabled"])
    def call_host(self, name: str, **kwargs: Any) -> Any:
        if name in self.session_context.elixir_tools:
            return {"result": self.session_context.call_elixir_tool(name, **kwargs)}
        return {"known": sorted(self.session_context.elixir_tools)}

    @tool(description="Describe the adapter")
    def describe(self, extra: Optional[List[int]] = None) -> Dict[str, Any]:  # noqa: UP006, UP045
        marked = [name for name in dir(self) if hasattr(getattr(self, name), "_tool_metadata")]
        registered = self.register_with_session("", None)
        metadata = self.echo._tool_metadata  # type: ignore[attr-defined]
        return {
            "marked": marked,
            "registered": registered,
            "description": metadata.description,
            "request_metadata": self.session_context.request_metadata,
            "extra": extra,
        }
