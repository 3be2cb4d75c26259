"""Runs tools in tests as a worker would, without a host or another process.

Values are converted through their wire forms.

>>> call_tool(Shop, "price", item="tea", count=2)  # doctest: +SKIP
19.98
"""

from __future__ import annotations

import contextvars
import inspect
import sys
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _arguments, _failures, _native
from snakepit_bridge._event_loop import EventLoop
from snakepit_bridge._plan import construct, init_process, plan_of
from snakepit_bridge.chunks import StreamChunk
from snakepit_bridge.errors import HostToolError, NotFoundError, ProgramNotFoundError, SnakepitError, ToolFailed
from snakepit_bridge.session_context import SessionContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Executor
    from types import TracebackType
    from typing import TypeVar

    from typing_extensions import Self

    from snakepit_bridge._call import HostStreamLike, PendingLike, VariablesLike
    from snakepit_bridge._plan import ToolPlan

    _T = TypeVar("_T")

__all__ = ["ToolFailed", "ToolTester", "call_tool", "call_tool_async", "stream_tool", "stream_tool_async"]


def call_tool(
    adapter: type,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    /,
    *,
    session_id: str = "test",
    host_tools: Mapping[str, Callable[..., Any]] | None = None,
    **more: Any,
) -> Any:
    """Call a tool and return its result.

    Blocks the event loop if called in a coroutine. Use :func:`call_tool_async` there.

    >>> call_tool(Shop, "price", item="tea", count=2)  # doctest: +SKIP
    19.98

    Args:
        adapter: The adapter class.
        name: The name of the tool.
        arguments: Arguments of the tool. Use it for arguments whose names are also parameters of this function, such as
            ``session_id``.
        session_id: The session of the call. Empty for none.
        host_tools: Functions that replace the host's tools, by name. A generator replaces a tool that streams.
        more: Arguments of the tool as keywords.

    Raises:
        ToolFailed: The tool raised an exception, which is the ``__cause__``, or its result cannot be sent.
        NotFoundError: The adapter has no such tool.
        InvalidArgumentError: A host would reject the arguments.
    """
    with ToolTester(adapter, session_id=session_id, host_tools=host_tools) as tester:
        return tester.call(name, arguments, **more)


def stream_tool(
    adapter: type,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    /,
    *,
    limit: int | None = None,
    session_id: str = "test",
    host_tools: Mapping[str, Callable[..., Any]] | None = None,
    **more: Any,
) -> list[Any]:
    """Call a tool that streams, and return the values of its chunks as a list.

    >>> stream_tool(Shop, "receipt", items=["tea", "milk"], limit=1)  # doctest: +SKIP
    [{'item': 'tea', 'price': 9.99}]

    Args:
        adapter: The adapter class.
        name: The name of the tool.
        arguments: Arguments of the tool, as for :func:`call_tool`.
        limit: The number of chunks after which to cancel the call. Necessary for tools that never end.
        session_id: The session of the call. Empty for none.
        host_tools: Functions that replace the host's tools, by name. A generator replaces a tool that streams.
        more: Arguments of the tool as keywords.

    Raises as :func:`call_tool` does.
    """
    with ToolTester(adapter, session_id=session_id, host_tools=host_tools) as tester:
        return [chunk.data for chunk in tester.stream(name, arguments, limit=limit, **more)]


async def call_tool_async(
    adapter: type,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    /,
    *,
    session_id: str = "test",
    host_tools: Mapping[str, Callable[..., Any]] | None = None,
    **more: Any,
) -> Any:
    """Call a tool as :func:`call_tool` does, without blocking the event loop of the test."""
    with ToolTester(adapter, session_id=session_id, host_tools=host_tools) as tester:
        return await tester.call_async(name, arguments, **more)


async def stream_tool_async(
    adapter: type,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    /,
    *,
    limit: int | None = None,
    session_id: str = "test",
    host_tools: Mapping[str, Callable[..., Any]] | None = None,
    **more: Any,
) -> list[Any]:
    """Call a tool as :func:`stream_tool` does, without blocking the event loop of the test."""
    with ToolTester(adapter, session_id=session_id, host_tools=host_tools) as tester:
        return [chunk.data for chunk in await tester.stream_async(name, arguments, limit=limit, **more)]


class ToolTester:
    """Runs the tools of one adapter on the calling thread, as a worker would.

    >>> with ToolTester(Shop) as tester:  # doctest: +SKIP
    ...     tester.context["discount"] = 0.5
    ...     tester.call("sale", item="tea")
    4.995

    The tools need a separate event loop. If the calling thread already runs one, as in a coroutine or a notebook, they
    run on another thread.

    Args:
        adapter: The adapter class.
        session_id: The session of the calls. Empty for none.
        host_tools: Functions that replace the host's tools, by name. A generator replaces a tool that streams.
        metadata: The metadata of the calls.
    """

    def __init__(
        self,
        adapter: type,
        *,
        session_id: str = "test",
        host_tools: Mapping[str, Callable[..., Any]] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(adapter, type):
            kind = type(adapter).__qualname__
            raise TypeError(
                f"adapter is an instance of `{kind}`; pass the class itself, because each call creates an instance"
            )
        #: The programs of the session, as content and content type.
        self.programs: dict[str, tuple[bytes, str]] = {}
        #: The host's own programs, as content and content type.
        self.global_programs: dict[str, tuple[bytes, str]] = {}
        self._session = _native.LocalSession(session_id) if session_id else None
        self._session_id = session_id
        self._host_tools = dict(host_tools or {})
        self._metadata = dict(metadata or {})
        self._loop = EventLoop()
        plan = plan_of(adapter, self._loop)
        plan.context = self._context
        plan.describe = self._describe
        self._error: BaseException | None = None
        self._thread: Executor | None = None
        self._tools = {tool.spec["name"]: tool for tool in plan.tools}
        self._dynamic = plan.is_dynamic
        self._runner = _native.LocalRunner(plan, "worker-under-test")
        #: The context of which each call gets a copy.
        self._base = contextvars.copy_context()
        self._run(lambda: init_process(adapter, self._loop), self._base)
        self._loop.context = self._base
        construct(adapter)

    def call(self, name: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> Any:
        """Call a tool and return its result. Arguments may be a mapping, keywords, or both."""
        return self._run(self._call_step(name, {**(arguments or {}), **more}))

    async def call_async(self, name: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> Any:
        """Call a tool as :meth:`call` does, without blocking the event loop of the test."""
        return await self._run_async(self._call_step(name, {**(arguments or {}), **more}))

    def stream(
        self, name: str, arguments: Mapping[str, Any] | None = None, /, *, limit: int | None = None, **more: Any
    ) -> list[StreamChunk]:
        """Call a tool that streams, and return its chunks.

        Args:
            name: The name of the tool.
            arguments: Arguments of the tool.
            limit: The number of chunks after which to cancel the call. Necessary for tools that never end.
            more: Arguments of the tool as keywords.
        """
        return self._run(self._stream_step(name, {**(arguments or {}), **more}, limit))

    async def stream_async(
        self, name: str, arguments: Mapping[str, Any] | None = None, /, *, limit: int | None = None, **more: Any
    ) -> list[StreamChunk]:
        """Call a tool as :meth:`stream` does, without blocking the event loop of the test."""
        return await self._run_async(self._stream_step(name, {**(arguments or {}), **more}, limit))

    @property
    def context(self) -> SessionContext:
        """A context outside of calls, for preparing and reading the variables and programs of the session."""
        return self._context(self._runner.session_call(self._session_id))

    def _checked_tool(self, name: str, arguments: Mapping[str, Any]) -> ToolPlan | None:
        """Return the tool after the checks of a host. Return ``None`` if only ``execute_tool`` may serve it."""
        tool = self._tools.get(name)
        if tool is not None:
            _arguments.check(tool.spec, arguments)
        elif not self._dynamic:
            raise NotFoundError(f"tool `{name}` not found{_arguments.did_you_mean(name, self._tools, '; {}')}")
        return tool

    def _call_step(self, name: str, arguments: dict[str, Any]) -> Callable[[], Any]:
        tool = self._checked_tool(name, arguments)
        if tool is not None and tool.is_generator:
            raise SnakepitError(f"tool `{name}` streams its results; call it with `stream_tool` or `ToolTester.stream`")
        return lambda: self._with_cause(lambda: self._runner.call(name, arguments, self._session_id))

    def _stream_step(self, name: str, arguments: dict[str, Any], limit: int | None) -> Callable[[], list[StreamChunk]]:
        chunks: list[StreamChunk] = []

        def receive(data: bytes, metadata: dict[str, str]) -> bool:
            chunks.append(StreamChunk(_native.from_json(data), metadata=metadata))
            return limit is None or len(chunks) < limit

        tool = self._checked_tool(name, arguments)
        has_own_limit = tool is not None and any(parameter["name"] == "limit" for parameter in tool.spec["parameters"])
        if has_own_limit and limit is not None and "limit" not in arguments:
            raise TypeError(f"tool `{name}` has its own parameter `limit`; pass it as {{'limit': ..}}")

        def stream() -> list[StreamChunk]:
            if limit is None or limit > 0:
                self._with_cause(lambda: self._runner.stream(name, arguments, self._session_id, receive))
            return chunks

        return stream

    def _with_cause(self, call: Callable[[], _T]) -> _T:
        """Call a function. The cause of a failure is the tool's exception, so debuggers and reports show its lines."""
        self._error = None
        try:
            return call()
        except ToolFailed as failed:
            raise failed from self._error

    def _describe(
        self,
        error: BaseException,
        function: Callable[..., Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[str, str, str]:
        self._error = error
        return _failures.describe(error, function, arguments)

    def _run(self, step: Callable[[], _T], context: contextvars.Context | None = None) -> _T:
        """Run a function as a worker would: in a copy of the context, on a thread without a running event loop."""
        context = self._base.copy() if context is None else context
        asyncio = sys.modules.get("asyncio")
        if asyncio is None or asyncio._get_running_loop() is None:
            return context.run(step)
        return self._own_thread().submit(context.run, step).result()

    async def _run_async(self, step: Callable[[], _T]) -> _T:
        import asyncio

        running = asyncio.get_running_loop()
        return await running.run_in_executor(self._own_thread(), self._base.copy().run, step)

    def _own_thread(self) -> Executor:
        if self._thread is None:
            from concurrent.futures import ThreadPoolExecutor

            self._thread = ThreadPoolExecutor(1, "snakepit-tester")
        return self._thread

    def close(self) -> None:
        """Close the event loop."""
        self._run(self._loop.close)
        if self._thread is not None:
            self._thread.shutdown()

    def __enter__(self) -> Self:
        """Return the tester itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the event loop."""
        self.close()

    def _context(self, call: _native.Call) -> SessionContext:
        if self._session is not None:
            # The previous call may have deleted the session.
            self._session.open()
        return SessionContext(_LocalCall(call, self))


class _LocalCall:
    """A call without a host. Uses functions, dicts, and a session in this process instead."""

    def __init__(self, call: _native.Call, tester: ToolTester) -> None:
        self.session_id = call.session_id
        self.worker_id = call.worker_id
        self.metadata = tester._metadata
        self.traceparent = None
        self.tracestate = None
        self._call = call
        self._host_tools = tester._host_tools
        self._programs = (tester.programs, tester.global_programs)
        self._session = tester._session

    @property
    def cancelled(self) -> bool:
        return self._call.cancelled

    def time_remaining(self) -> float | None:
        return self._call.time_remaining()

    def host_tools(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "name": name,
                "description": function.__doc__ or "",
                "parameters": [],
                "supports_streaming": inspect.isgeneratorfunction(function),
            }
            for name, function in self._host_tools.items()
        }

    def call_host_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        return _round_trip(self._run_host_tool(name, arguments), f"the result of host tool `{name}`")

    def stream_host_tool(self, name: str, arguments: dict[str, Any]) -> HostStreamLike:
        def results() -> Iterator[Any]:
            iterator = iter(self._run_host_tool(name, arguments))
            while True:
                try:
                    result = next(iterator)
                except StopIteration:
                    return
                except HostToolError:
                    raise
                except Exception as error:
                    text = f"{type(error).__name__}: {error}"
                    raise HostToolError(text, name, type_name=type(error).__name__) from error
                yield _round_trip(result, f"a result of host tool `{name}`")

        return _LocalStream(results())

    def _run_host_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        sent = {
            key: _round_trip(value, f"argument `{key}` of host tool `{name}`", is_argument=True)
            for key, value in arguments.items()
        }
        if name not in self._host_tools:
            hint = _arguments.did_you_mean(name, self._host_tools, "; {}")
            raise NotFoundError(f"host tool `{name}` not found{hint}; pass the function in `host_tools`")
        try:
            return self._host_tools[name](**sent)
        except HostToolError:
            raise
        except Exception as error:
            raise HostToolError(f"{type(error).__name__}: {error}", name, type_name=type(error).__name__) from error

    def start_host_tool(
        self, name: str, arguments: dict[str, Any], completions: _native.Completions, key: int
    ) -> PendingLike:
        completed = _Completed(self.call_host_tool(name, arguments))
        completions.complete(key)
        return completed

    def variables(self) -> VariablesLike:
        if self._session is None:
            raise NotFoundError("there is no session")
        return self._session.variables(self._call)

    def put_program(
        self,
        name: str,
        data: bytes | bytearray | memoryview,
        content_type: str,
        metadata: dict[str, str],
        *,
        is_global: bool,
        ttl_seconds: int | None,
    ) -> bool:
        del metadata, ttl_seconds
        programs = self._programs_of(is_global)
        created = name not in programs
        programs[name] = (bytes(data), content_type)
        return created

    def get_program(self, name: str, is_global: bool) -> tuple[bytes, str]:
        programs = self._programs_of(is_global)
        if name not in programs:
            raise ProgramNotFoundError(f"program `{name}` not found")
        return programs[name]

    def list_programs(self, is_global: bool) -> list[str]:
        return sorted(self._programs_of(is_global))

    def delete_program(self, name: str, is_global: bool) -> None:
        self.get_program(name, is_global)
        del self._programs[is_global][name]

    def _programs_of(self, is_global: bool) -> dict[str, tuple[bytes, str]]:
        if not is_global and self._session is not None:
            self._session.require()
        return self._programs[is_global]

    def cleanup_session(self, force: bool) -> bool:
        del force
        self._programs[False].clear()
        if self._session is not None:
            self._session.end()
        return True


class _LocalStream:
    """The results of a function that replaces a host tool."""

    def __init__(self, results: Iterator[Any]) -> None:
        self._results: Iterator[Any] | None = results

    def next(self) -> tuple[Any] | None:
        for result in self._results or ():
            return (result,)
        return None

    def ready(self, completions: _native.Completions, key: int) -> None:
        completions.complete(key)

    def take(self) -> tuple[Any] | None:
        return self.next()

    def close(self) -> None:
        self._results = None


class _Completed:
    """A completed call of a host tool."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        return self._value


def _round_trip(value: Any, description: str, *, is_argument: bool = False) -> Any:
    return _native.decode(*_native.encode(value, description, is_argument=is_argument))
