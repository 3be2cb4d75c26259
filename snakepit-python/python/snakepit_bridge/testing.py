"""Runs tools in tests as a worker would, without a host or another process.

Values are converted through their wire forms.

>>> call_tool(Shop, "price", item="tea", count=2)  # doctest: +SKIP
19.98
"""

from __future__ import annotations

import contextlib
import contextvars
import json
from _thread import RLock
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _arguments, _checked, _current, _failures, _native, _specs, _threads
from snakepit_bridge._event_loop import EventLoop
from snakepit_bridge._lifecycle import Lifecycle
from snakepit_bridge._loading import class_of
from snakepit_bridge._local_call import LocalCall
from snakepit_bridge._plan import AdapterError, plan_of
from snakepit_bridge._tester_options import TesterCalls
from snakepit_bridge.chunks import StreamChunk
from snakepit_bridge.errors import DeadlockError, NotFoundError, SnakepitError, ToolFailed
from snakepit_bridge.session_context import SessionContext

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor
    from types import TracebackType
    from typing import Self, TypeVar

    from snakepit_bridge._call_record import CallRecord
    from snakepit_bridge._concurrent_tester import ConcurrentTester
    from snakepit_bridge._daemon import Daemon
    from snakepit_bridge._launch import Adapter, DaemonError
    from snakepit_bridge._plan import ToolPlan
    from snakepit_bridge._tester_calls import CallControl, RunningCall

    _T = TypeVar("_T")


__all__ = [
    "AdapterError",
    "CallRecord",
    "Daemon",
    "DaemonError",
    "RunningCall",
    "ToolFailed",
    "ToolTester",
    "call_tool",
    "call_tool_async",
    "stream_tool",
    "stream_tool_async",
]


def __getattr__(name: str) -> Any:
    """Import the classes that few tests need."""
    if name == "Daemon":
        from snakepit_bridge import _daemon

        return _daemon.Daemon
    if name == "DaemonError":
        from snakepit_bridge import _launch

        return _launch.DaemonError
    if name == "CallRecord":
        from snakepit_bridge import _call_record

        return _call_record.CallRecord
    if name == "RunningCall":
        from snakepit_bridge import _tester_calls

        return _tester_calls.RunningCall
    raise AttributeError(f"module `{__name__}` has no attribute `{name}`")


#: The number of workers that a tester simulates: the default of a host.
_WORKERS = 4


def call_tool(
    adapter: Adapter,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    /,
    *,
    session_id: str = "test",
    host_tools: Mapping[str, Callable[..., Any]] | None = None,
    adapter_args: Mapping[str, Any] | None = None,
    **more: Any,
) -> Any:
    """Call a tool and return its result.

    Blocks the event loop if called in a coroutine. Use :func:`call_tool_async` there.

    >>> call_tool(Shop, "price", item="tea", count=2)  # doctest: +SKIP
    19.98

    Args:
        adapter: A class, a module, a function of a module, or the path of one of them, as for a host.
        name: The name of the tool.
        arguments: Arguments of the tool. Use it for arguments whose names are also parameters of this function, such as
            ``session_id``.
        session_id: The session of the call. Empty for none.
        host_tools: Functions that replace the host's tools, by name. A generator replaces a tool that streams.
        adapter_args: The arguments of the adapter, by name.
        more: Arguments of the tool as keywords.

    Raises:
        ToolFailed: The tool raised an exception, which is the ``__cause__``, or its result cannot be sent.
        NotFoundError: The adapter has no such tool.
        InvalidArgumentError: A host would reject the arguments.
    """
    with ToolTester(adapter, session_id=session_id, host_tools=host_tools, adapter_args=adapter_args) as tester:
        return tester.call(name, arguments, **more)


def stream_tool(
    adapter: Adapter,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    /,
    *,
    limit: int | None = None,
    session_id: str = "test",
    host_tools: Mapping[str, Callable[..., Any]] | None = None,
    adapter_args: Mapping[str, Any] | None = None,
    **more: Any,
) -> list[Any]:
    """Call a tool that streams, and return the values of its chunks as a list.

    >>> stream_tool(Shop, "receipt", items=["tea", "milk"], limit=1)  # doctest: +SKIP
    [{'item': 'tea', 'price': 9.99}]

    Args:
        adapter: A class, a module, a function of a module, or the path of one of them, as for a host.
        name: The name of the tool.
        arguments: Arguments of the tool, as for :func:`call_tool`.
        limit: The number of chunks after which to cancel the call. Necessary for tools that never end.
        session_id: The session of the call. Empty for none.
        host_tools: Functions that replace the host's tools, by name. A generator replaces a tool that streams.
        adapter_args: The arguments of the adapter, by name.
        more: Arguments of the tool as keywords.

    Raises as :func:`call_tool` does.
    """
    with ToolTester(adapter, session_id=session_id, host_tools=host_tools, adapter_args=adapter_args) as tester:
        return [chunk.data for chunk in tester.stream(name, arguments, limit=limit, **more)]


async def call_tool_async(
    adapter: Adapter,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    /,
    *,
    session_id: str = "test",
    host_tools: Mapping[str, Callable[..., Any]] | None = None,
    adapter_args: Mapping[str, Any] | None = None,
    **more: Any,
) -> Any:
    """Call a tool as :func:`call_tool` does, without blocking the event loop of the test."""
    with ToolTester(adapter, session_id=session_id, host_tools=host_tools, adapter_args=adapter_args) as tester:
        return await tester.call_async(name, arguments, **more)


async def stream_tool_async(
    adapter: Adapter,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    /,
    *,
    limit: int | None = None,
    session_id: str = "test",
    host_tools: Mapping[str, Callable[..., Any]] | None = None,
    adapter_args: Mapping[str, Any] | None = None,
    **more: Any,
) -> list[Any]:
    """Call a tool as :func:`stream_tool` does, without blocking the event loop of the test."""
    with ToolTester(adapter, session_id=session_id, host_tools=host_tools, adapter_args=adapter_args) as tester:
        return [chunk.data for chunk in await tester.stream_async(name, arguments, limit=limit, **more)]


class ToolTester(TesterCalls):
    """Runs the tools of one adapter on the calling thread, as a worker would.

    >>> with ToolTester(Shop) as tester:  # doctest: +SKIP
    ...     tester.context["discount"] = 0.5
    ...     tester.call("sale", item="tea")
    4.995

    If the adapter sets ``concurrency`` or ``threads``, calls of several threads, of `start` and of `call_async` run
    together. The tools need a separate event loop. If the calling thread already runs one, as in a coroutine or a
    notebook, they run on another thread.

    Args:
        adapter: A class, a module, a function of a module, or the path of one of them, as for a host.
        session_id: The session of the calls. Empty for none.
        host_tools: Functions that replace the host's tools, by name. A generator replaces a tool that streams.
        metadata: The metadata of the calls.
        adapter_args: The arguments of the adapter, by name. They have a JSON form.

    Raises:
        AdapterError: A worker could not start with this adapter.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        session_id: str = "test",
        host_tools: Mapping[str, Callable[..., Any]] | None = None,
        metadata: Mapping[str, str] | None = None,
        adapter_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(self, None)
        _threads.install()
        served = class_of(adapter)
        #: The programs of the session, as content and content type.
        self.programs: dict[str, tuple[bytes, str]] = {}
        #: The host's own programs, as content and content type.
        self.global_programs: dict[str, tuple[bytes, str]] = {}
        self._last_call: CallRecord | None = None
        #: The records of the running calls, by the id of the call. That of a call without a control has the key "".
        self._records: dict[str, CallRecord] = {}
        self._adapter = adapter
        self._adapter_args = adapter_args
        #: The tester for calls that a tool makes to other tools, which other workers would run.
        self._peer: ToolTester | None = None
        self._depth = 1
        self._session = _native.LocalSession(session_id) if session_id else None
        self._session_id = session_id
        self._host_tools = dict(host_tools or {})
        self._metadata = dict(metadata or {})
        self._loop = EventLoop()
        plan = plan_of(served, self._loop)
        given = json.loads(json.dumps(dict(adapter_args or {})))
        self._life = Lifecycle(served, self._loop, given)
        plan.factory = self._life.factory
        plan.load_context = lambda: self._context
        plan.describe = self._describe
        self._error: BaseException | None = None
        self._thread: Executor | None = None
        self._calls = plan.calls
        #: Held by the running call, if calls run one after another.
        self._turn: Any = RLock() if plan.calls == 1 else contextlib.nullcontext()
        self._concurrent: ConcurrentTester | None = None
        self._runner: Any
        self._tools = {tool.spec["name"]: tool for tool in plan.tools}
        self._dynamic = plan.is_dynamic
        #: The context of which each call gets a copy.
        self._base = contextvars.copy_context()
        self._base.run(_current.set_process, _current.Process())
        if self._calls > 1:
            from snakepit_bridge._concurrent_tester import ConcurrentTester

            self._concurrent = ConcurrentTester(plan, self._loop, self._life, self._base)
            self._runner = self._concurrent.runner
        else:
            self._runner = _native.LocalRunner(plan, "worker-under-test")
            self._run(self._life.start, self._base)
            self._loop.context = self._base

    def options(self, *, timeout: float | None = None) -> TesterCalls:
        """Return the calls of this tester with these options, as :meth:`Client.options` does.

        >>> tester.options(timeout=0.5).call("wait", seconds=30)  # doctest: +SKIP
        Traceback (most recent call last):
        snakepit_bridge.errors.DeadlineExceededError: deadline of tool `wait` exceeded while running, ...

        Args:
            timeout: The seconds within which each call must end. Then the tester interrupts the tool as a worker does,
                and waits for its end. Outside of the main thread, a synchronous function ends a blocking system call
                first.
        """
        return TesterCalls(self, _checked.seconds("timeout", timeout))

    @property
    def last_call(self) -> CallRecord:
        """The progress and the output of the call that began last.

        Raises:
            RuntimeError: No call has begun.
        """
        if self._last_call is None:
            raise RuntimeError("no call of this tester has begun")
        return self._last_call

    @property
    def context(self) -> SessionContext:
        """A context outside of calls, for preparing and reading the variables and programs of the session."""
        return self._context(self._runner.session_call(self._session_id))

    def _checked_tool(self, name: str, arguments: Mapping[str, Any]) -> ToolPlan | None:
        """Return the tool after the checks of a host. Return ``None`` if only ``execute_tool`` may serve it."""
        tool = self._tools.get(name)
        if tool is not None:
            # The runtime checks the arguments of other tools.
            if _specs.UNCHECKED_KEY not in tool.spec["metadata"]:
                _arguments.check(tool.spec, arguments)
        elif not self._dynamic:
            raise NotFoundError(f"tool `{name}` not found{_arguments.did_you_mean(name, self._tools, '; {}')}")
        return tool

    def _new_control(self, name: str, timeout: float | None) -> CallControl:
        from snakepit_bridge._tester_calls import CallControl

        kind = CallControl if self._concurrent is None else self._concurrent.control_class
        return kind(self._runner, self._loop, name, timeout)

    def _call_step(
        self,
        name: str,
        arguments: dict[str, Any],
        control: CallControl | None,
        record: CallRecord | None = None,
    ) -> Callable[[], Any]:
        tool = self._checked_tool(name, arguments)
        if tool is not None and tool.is_generator:
            raise SnakepitError(f"tool `{name}` streams its results; call it with `stream_tool` or `ToolTester.stream`")
        native = None if control is None else control.native
        call = lambda: self._runner.call(name, arguments, self._session_id, native)  # noqa: E731
        return self._step(call, control, record or self._new_record(name))

    def _stream_step(
        self, name: str, arguments: dict[str, Any], limit: int | None, control: CallControl | None
    ) -> Callable[[], list[StreamChunk]]:
        chunks: list[StreamChunk] = []

        def receive(data: Any, metadata: dict[str, str]) -> bool:
            chunks.append(StreamChunk(data, metadata=metadata))
            if limit is None or len(chunks) < limit:
                return True
            if control is not None:
                control.cancel()
            return False

        tool = self._checked_tool(name, arguments)
        has_own_limit = tool is not None and any(parameter["name"] == "limit" for parameter in tool.spec["parameters"])
        if has_own_limit and limit is not None and "limit" not in arguments:
            raise TypeError(f"tool `{name}` has its own parameter `limit`; pass it as {{'limit': ..}}")
        native = None if control is None else control.native
        call = lambda: self._runner.stream(name, arguments, self._session_id, receive, native)  # noqa: E731
        run = self._step(call, control, self._new_record(name))

        def stream() -> list[StreamChunk]:
            if limit is None or limit > 0:
                run()
            return chunks

        return stream

    def _new_record(self, name: str) -> CallRecord:
        from snakepit_bridge import _call_record

        return _call_record.new(name)

    def _step(self, call: Callable[[], _T], control: CallControl | None, record: CallRecord) -> Callable[[], _T]:
        """Return a function that makes a call and records its output.

        The cause of a failure is the tool's exception, so debuggers and reports show its lines.
        """

        def step() -> _T:
            from snakepit_bridge._call_record import recording

            with self._turn:
                self._error = None
                key = "" if control is None else str(control.native.id)
                self._last_call = self._records[key] = record
                try:
                    with recording(record):
                        return call() if control is None else control.run(call)
                except ToolFailed as failed:
                    raise failed from self._error if self._concurrent is None else self._concurrent.take_error(control)
                finally:
                    del self._records[key]

        return step

    def _describe(
        self,
        error: BaseException,
        function: Callable[..., Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[str, str, str]:
        self._error = error
        if self._concurrent is not None:
            self._concurrent.note_error(error)
        return _failures.describe(error, function, arguments)

    def _call_peer(self, name: str, arguments: Mapping[str, Any], outer: CallRecord | None) -> Any:
        """Call a tool as another worker would run it, with the same session and programs."""
        from snakepit_bridge._call_record import nested

        peer = self._other_worker(name)
        return peer._own_thread().submit(nested, outer, peer.call, name, arguments).result()

    def _stream_peer(self, name: str, arguments: Mapping[str, Any], outer: CallRecord | None) -> list[Any]:
        """Call a tool that streams as another worker would run it. Return the values of its chunks."""
        from snakepit_bridge._call_record import nested

        peer = self._other_worker(name)
        chunks = peer._own_thread().submit(nested, outer, peer.stream, name, arguments).result()
        return [chunk.data for chunk in chunks]

    def _other_worker(self, name: str) -> ToolTester:
        """Return the tester that plays the worker of a nested call."""
        if self._depth >= _WORKERS:
            raise DeadlockError(
                f"call of tool `{name}` would wait for itself: each of the {_WORKERS} workers runs a call that waits "
                "for this one"
            )
        if self._peer is None:
            peer = ToolTester(
                self._adapter,
                session_id=self._session_id,
                host_tools=self._host_tools,
                metadata=self._metadata,
                adapter_args=self._adapter_args,
            )
            peer._session, peer._depth = self._session, self._depth + 1
            peer.programs, peer.global_programs = self.programs, self.global_programs
            self._peer = peer
        return self._peer

    def _run(self, step: Callable[[], _T], context: contextvars.Context | None = None) -> _T:
        """Run a function as a worker would: in a copy of the context, on a thread without a running event loop."""
        context = self._base.copy() if context is None else context
        if not _current.runs_loop():
            return context.run(step)
        return self._own_thread().submit(context.run, step).result()

    async def _run_async(self, step: Callable[[], _T], control: CallControl) -> _T:
        import asyncio

        running = asyncio.get_running_loop()
        ended = running.run_in_executor(self._own_thread(), self._base.copy().run, step)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            control.cancel()
            # The next call of this tester must not begin before.
            await asyncio.wait([ended])
            if not ended.cancelled():
                ended.exception()
            raise

    def _own_thread(self) -> Executor:
        if self._thread is None:
            from concurrent.futures import ThreadPoolExecutor

            self._thread = ThreadPoolExecutor(self._calls, "snakepit-tester")
        return self._thread

    def close(self) -> None:
        """Stop the adapter as a worker does, and close the event loop."""
        if self._peer is not None:
            self._peer.close()
        if self._concurrent is not None:
            self._concurrent.close()
        else:
            if self._thread is not None:
                # Calls of `start` end before the adapter stops.
                self._thread.submit(int).result()
            self._run(self._life.stop)
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
        """Close the tester."""
        self.close()

    def _context(self, call: _native.Call) -> SessionContext:
        if self._session is not None:
            # The previous call may have deleted the session.
            self._session.open()
        record = self._records.get(call.request_id) or self._records.get("")
        return SessionContext(LocalCall(call, self, record))
