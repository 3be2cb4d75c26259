"""A client of a host: calls its tools and shares its sessions, from any Python program.

>>> with Client("127.0.0.1:50051") as client:  # doctest: +SKIP
...     client.call("add", a=1, b=2)
...     client.session("alice")["rate"] = 0.5
3
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _checked, _native
from snakepit_bridge._readiness import until_done
from snakepit_bridge.programs import GlobalPrograms, Programs
from snakepit_bridge.variables import SessionVariables

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import TracebackType
    from typing import Self

    from snakepit_bridge._call import CallLike
    from snakepit_bridge.reports import LogLine, Progress

    #: A report of the native client: progress as its done, total and message, or a line of output as its text, stream,
    #: level, logger and seconds since the epoch.
    _Report = tuple[tuple[float, float | None, str] | None, tuple[str, str, int, str, float] | None]

__all__ = ["Client", "Session"]


@dataclass(frozen=True)
class _Options:
    session_id: str = ""
    timeout: float | None = None
    idempotent: bool = False
    progress: Callable[[Progress], object] | None = None
    logs: Callable[[LogLine], object] | None = None

    def deliver_until_ready(self, call: _native.HostCall) -> None:
        """Wait until a result or chunk is available, and deliver the reports that arrive before it."""
        if self.progress is not None or self.logs is not None:
            while reports := call.next_reports():
                self._deliver(reports)

    async def until_ready(self, call: _native.HostCall) -> None:
        """Do the same without blocking the event loop. Cancels the call if the wait is cancelled or fails."""
        try:
            await until_done(call.ready)
            if self.progress is not None or self.logs is not None:
                while reports := call.take_reports():
                    self._deliver(reports)
                    await until_done(call.ready)
        except BaseException:
            call.cancel()
            raise

    def _deliver(self, reports: list[_Report]) -> None:
        from snakepit_bridge.reports import LogLine, Progress

        for progress, line in reports:
            if progress is not None and self.progress is not None:
                self.progress(Progress(*progress))
            if line is not None and self.logs is not None:
                text, stream, level, logger, time = line
                received = datetime.fromtimestamp(time, UTC)
                self.logs(LogLine(text, "stdout" if stream == "stdout" else "stderr", level, logger, received))


class _Caller:
    """Calls over one connection with fixed options."""

    def __init__(self, native: _native.HostClient, options: _Options) -> None:
        self._native = native
        self._options = options
        self._call: CallLike = native.session_call(options.session_id, options.timeout)

    @property
    def global_programs(self) -> GlobalPrograms:
        """The host's own programs, shared by all sessions."""
        return GlobalPrograms(self._call)

    def tools(self) -> dict[str, dict[str, Any]]:
        """List the tools of the host by name.

        Each has the keys ``name``, ``description``, ``parameters``, ``supports_streaming``, ``provider``,
        ``input_schema``, ``result_schema`` and ``item_schema``. The last three are JSON Schemas of the arguments, the
        result, and the items of a stream. ``None`` means that the tool does not declare it.

        Raises:
            HostUnavailableError: The host cannot be reached, or the connection broke.
        """
        return self._native.tools(self._options.timeout)

    def call(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool and wait for its result.

        Every keyword argument is an argument of the tool. To set a deadline, use ``options(timeout=..).call(..)``.

        >>> client.options(timeout=5).call("add", a=1, b=2)  # doctest: +SKIP
        3

        Raises:
            ToolFailed: The tool raised an exception. Also an instance of the exception's class, if it is imported.
            NotFoundError: The tool or the session does not exist.
            InvalidArgumentError: The arguments do not match the tool's parameters, or cannot be sent.
            UnsupportedError: The tool is a generator. Use :meth:`stream`.
            DeadlineExceededError: The deadline passed.
            OverloadedError: The host is overloaded.
            WorkerLostError: The worker exited before the call ended.
            ShuttingDownError: The host is shutting down.
            HostUnavailableError: The host cannot be reached, the connection broke, or no worker is available. The three
                errors above are subclasses.
            AccessDeniedError: The host, or a proxy in front of it, denied access.
            LimitExceededError: The answer is too large, or too many answers are unread.
            ClientClosedError: The client is closed.
        """
        call = self._start(name, arguments, stream=False)
        self._options.deliver_until_ready(call)
        return call.result()

    async def call_async(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool without blocking the event loop.

        Cancelling the task cancels the call. Raises as :meth:`call` does.
        """
        call = self._start(name, arguments, stream=False)
        await self._options.until_ready(call)
        return call.take_result()

    def stream(self, name: str, /, **arguments: Any) -> Iterator[Any]:
        """Call a tool that streams its results, and return an iterator. Dropping it cancels the call.

        >>> for number in client.stream("count", n=3):  # doctest: +SKIP
        ...     print(number)

        Raises as :meth:`call` does, also during the iteration.
        """
        call = self._start(name, arguments, stream=True)
        return _Chunks(call, self._options)

    async def stream_async(self, name: str, /, **arguments: Any) -> AsyncIterator[Any]:
        """Call a tool that streams its results, without blocking the event loop. See :meth:`stream`."""
        call = self._start(name, arguments, stream=True)
        try:
            while True:
                await self._options.until_ready(call)
                try:
                    chunk = call.take_chunk()
                except StopIteration:
                    return
                yield chunk
        finally:
            call.cancel()

    def _start(self, name: str, arguments: dict[str, Any], *, stream: bool) -> _native.HostCall:
        options = self._options
        return self._native.start(
            name,
            arguments,
            session_id=options.session_id,
            timeout=options.timeout,
            idempotent=options.idempotent,
            stream=stream,
            progress=options.progress is not None,
            logs=options.logs is not None,
        )


class Client(_Caller):
    """A connection to a host, usable from several threads. All calls share one stream.

    If the connection breaks, the next call reconnects. Calls that were not sent yet, and calls marked ``idempotent``,
    are sent again. Other running calls and watches raise ``HostUnavailableError``. After ``fork()``, the child must
    create its own client: the parent's client raises ``HostUnavailableError`` there.

    >>> client = Client("unix:/run/snakepit/host.sock")  # doctest: +SKIP

    A failure of a tool raises :class:`ToolFailed`. If this program has imported the class of the tool's exception, the
    error is also an instance of that class, so ``except OutOfStock`` and ``except ValueError`` work. The client imports
    no module and does not call ``__init__``: the object has the ``args`` and the published attributes of the tool's
    exception. Errors of this package keep their meaning: only ``ToolError`` is raised for a tool.

    Args:
        address: ``host:port`` or ``unix:/path/to/socket``.
        connect_timeout: Seconds within which each attempt to connect must succeed. ``math.inf`` is the maximum.
        exceptions: The classes that a failure of a tool may raise in addition to ``ToolFailed``, for example for a host
            that you do not trust. Empty for none. By default, all classes of imported modules, and builtins.

    Raises:
        InvalidArgumentError: The address is malformed, or the timeout is out of range.
        HostUnavailableError: The host cannot be reached.
        ConnectTimeoutError: The host does not answer in time. A subclass of ``HostUnavailableError``.
    """

    def __init__(
        self, address: str, *, connect_timeout: float = 5.0, exceptions: Iterable[type[Exception]] | None = None
    ) -> None:
        classes = None if exceptions is None else _exception_classes(exceptions)
        super().__init__(_native.HostClient(address, connect_timeout, classes), _Options())

    def options(
        self,
        *,
        timeout: float | None = None,
        idempotent: bool = False,
        progress: Callable[[Progress], object] | None = None,
        logs: Callable[[LogLine], object] | None = None,
    ) -> _Caller:
        """Return a caller on this connection whose calls have these options.

        Args:
            timeout: Seconds within which a call must end, including its time in the queue. By default the host's limit.
                Also limits each request for programs or variables (30 seconds by default), and each watch as a whole.
                The client enforces the timeout itself, in case the host hangs. ``math.inf`` is the maximum.
            idempotent: Whether running a call twice is harmless. If so, the host and the client may retry it.
            progress: A function for the progress that the tool reports. It runs in the thread or task that waits for
                the call. An exception in it cancels the call.
            logs: A function for the output of the tool, line by line. All lines precede the result. The host passes
                them on only to callers that may see tracebacks.

        Raises:
            InvalidArgumentError: The timeout is out of range, or an option has the wrong type.
        """
        idempotent = _checked.flag("idempotent", idempotent)
        return _Caller(self._native, _Options("", timeout, idempotent, progress, logs))

    def session(self, session_id: str, *, timeout: float | None = None) -> Session:
        """Return the session with this id. Creates it if it does not exist.

        Args:
            session_id: The id.
            timeout: Seconds within which this request (30 by default), and each call and request of the session, must
                end. See :meth:`options`.
        """
        self._native.open_session(_checked.name("session_id", session_id), timeout)
        return Session(self._native, _Options(session_id=session_id, timeout=timeout))

    def close(self, timeout: float | None = None) -> None:
        """Close the client. Its watches and further calls raise ``ClientClosedError``.

        Running calls and streams continue to their end, on the open connection. Without ``timeout``, this method does
        not wait for them. With it, it waits that long and then ends the remaining ones with ``ClientClosedError``.

        Args:
            timeout: Seconds. 0 ends all calls immediately.
        """
        self._native.close(timeout)

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the client. Running calls continue."""
        self.close()


class Session(_Caller, SessionVariables):
    """A session of a host, created by :meth:`Client.session`.

    Its calls run in the session. Its variables are those of :class:`SessionVariables`, shared with tools:
    ``session["rate"] = 0.5``.
    """

    @property
    def session_id(self) -> str:
        """The id of the session."""
        return self._options.session_id

    @property
    def programs(self) -> Programs:
        """The programs of the session: named blobs, such as trained models, that the host stores."""
        return Programs(self._call)

    def options(
        self,
        *,
        timeout: float | None = None,
        idempotent: bool = False,
        progress: Callable[[Progress], object] | None = None,
        logs: Callable[[LogLine], object] | None = None,
    ) -> Session:
        """Return this session with these options, which replace all others. See :meth:`Client.options`."""
        idempotent = _checked.flag("idempotent", idempotent)
        return Session(self._native, _Options(self.session_id, timeout, idempotent, progress, logs))

    def _until(self, end: float) -> Session:
        if self._options.timeout is None:
            return self
        left = max(end - time.monotonic(), 0.001)
        return Session(self._native, replace(self._options, timeout=min(left, self._options.timeout)))

    def delete(self) -> None:
        """Delete the session with its variables and programs."""
        self._call.cleanup_session(False)


def _exception_classes(value: object) -> tuple[type[Exception], ...]:
    expected = "exception classes"
    if not isinstance(value, Iterable):
        raise _checked.wrong_type("exceptions", value, f"a list of {expected}")
    classes = tuple(value)
    for index, kind in enumerate(classes):
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            raise _checked.wrong_type(f"exceptions[{index}]", kind, expected)
    return classes


class _Chunks:
    """An iterator over the values of a stream. Dropping it cancels the call."""

    def __init__(self, call: _native.HostCall, options: _Options) -> None:
        self._call = call
        self._options = options

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        self._options.deliver_until_ready(self._call)
        return self._call.chunk()

    def close(self) -> None:
        """Cancel the call."""
        self._call.cancel()

    def __del__(self) -> None:
        self._call.cancel()
