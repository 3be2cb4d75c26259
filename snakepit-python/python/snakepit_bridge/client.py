"""Calling the tools of a host, and sharing its sessions, from a Python program that is no worker.

>>> with Client("127.0.0.1:50051") as client:  # doctest: +SKIP
...     client.call("add", a=1, b=2)
...     client.session("alice")["rate"] = 0.5
3
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _checked, _native
from snakepit_bridge._readiness import until_done
from snakepit_bridge.programs import GlobalPrograms, Programs
from snakepit_bridge.variables import SessionVariables

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from snakepit_bridge._call import CallLike

__all__ = ["Client", "Session"]


@dataclass(frozen=True)
class _Options:
    session_id: str = ""
    timeout: float | None = None
    idempotent: bool = False


class _Caller:
    """Calls of one connection, made in one way."""

    def __init__(self, native: _native.HostClient, options: _Options) -> None:
        self._native = native
        self._options = options
        self._call: CallLike = native.outside(options.session_id, options.timeout)

    @property
    def global_programs(self) -> GlobalPrograms:
        """The host's own programs, which every session sees."""
        return GlobalPrograms(self._call)

    def call(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool and wait for its result.

        All keyword arguments are the tool's: a deadline is set by ``options(timeout=..).call(..)``.

        Raises:
            ToolFailed: The tool raised.
            NotFoundError: The host has no such tool, or the session is gone.
            InvalidArgumentError: The arguments do not fit.
            UnsupportedError: The tool is a generator: call it with :meth:`stream`.
            DeadlineExceededError: The time is up.
            OverloadedError: The host has too much to do.
            WorkerLostError: The worker ended before the call did.
            ShuttingDownError: The host shuts down.
            HostUnavailableError: The host cannot be reached, the connection broke, or no worker is available. The
                three above are subclasses.
            ClientClosedError: The client is closed.
        """
        return self._start(name, arguments, stream=False).result()

    async def call_async(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool without blocking the event loop; cancelling it cancels the call. Raises as :meth:`call` does."""
        call = self._start(name, arguments, stream=False)
        await _until_ready(call)
        return call.take_result()

    def stream(self, name: str, /, **arguments: Any) -> Iterator[Any]:
        """Call a tool for a stream of values; dropping it cancels the call. Raises what :meth:`call` does."""
        call = self._start(name, arguments, stream=True)
        return _Chunks(call)

    async def stream_async(self, name: str, /, **arguments: Any) -> AsyncIterator[Any]:
        """Call a tool for a stream of values without blocking the event loop."""
        call = self._start(name, arguments, stream=True)
        try:
            while True:
                await _until_ready(call)
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
        )


class Client(_Caller):
    """A connection to a host; all calls share one stream. May be used from several threads at once.

    When the connection breaks, the next call reconnects. A call that was not sent yet, or is declared ``idempotent``,
    is repeated; other calls on their way and watches fail with ``HostUnavailableError``. After ``fork()`` the child
    has to connect for itself: its parent's client raises that, too.

    Args:
        address: ``host:port`` or ``unix:/path/to/socket``.
        connect_timeout: Seconds that connecting may take, now and whenever the connection breaks.

    Raises:
        HostUnavailableError: The host cannot be reached.
        ConnectTimeoutError: It does not answer in time. This is a ``HostUnavailableError``, too.
    """

    def __init__(self, address: str, *, connect_timeout: float = 5.0) -> None:
        super().__init__(_native.HostClient(address, connect_timeout), _Options())

    def options(self, *, timeout: float | None = None, idempotent: bool = False) -> _Caller:
        """Return a caller on this connection whose calls have these options.

        Args:
            timeout: Seconds that a call may take, queueing included; the host's default without it.
                A request for programs or variables may take as long, 30 seconds without it, and so may a watch as a
                whole. The client keeps the time itself, so that a host that froze cannot make it wait.
            idempotent: Whether running a call twice does no harm, so that the host or the client may repeat it.
        """
        return _Caller(self._native, _Options(timeout=timeout, idempotent=idempotent))

    def session(self, session_id: str, *, timeout: float | None = None) -> Session:
        """Return the session of this id, creating it if need be.

        Args:
            session_id: The id.
            timeout: Seconds that this may take, 30 without it, and each call and request of the session as well: see
                :meth:`options`.
        """
        self._native.open_session(_checked.name("session_id", session_id), timeout)
        return Session(self._native, _Options(session_id=session_id, timeout=timeout))

    def close(self, timeout: float | None = None) -> None:
        """Take no more calls. Watches, and further calls, raise ``ClientClosedError``.

        Calls and streams that run go on to their end, and the connection with them. Without ``timeout`` this returns
        at once; with it, it waits for them that long, and then ends those that are left with ``ClientClosedError``.

        Args:
            timeout: Seconds; 0 ends everything now.
        """
        self._native.close(timeout)

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the client as ``close()`` does: what runs goes on."""
        self.close()


class Session(_Caller, SessionVariables):
    """One session of a host, and calls in it: :meth:`Client.session`.

    Its variables are those of :class:`SessionVariables`, as tools have them: ``session["rate"] = 0.5``.
    """

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._options.session_id

    @property
    def programs(self) -> Programs:
        """The session's programs: named blobs, such as trained models, that the host keeps."""
        return Programs(self._call)

    def options(self, *, timeout: float | None = None, idempotent: bool = False) -> Session:
        """Return this session with these options, and no others. See :meth:`Client.options`."""
        return Session(self._native, _Options(self.session_id, timeout, idempotent))

    def _until(self, end: float) -> Session:
        if self._options.timeout is None:
            return self
        left = max(end - time.monotonic(), 0.001)
        return Session(self._native, replace(self._options, timeout=min(left, self._options.timeout)))

    def delete(self) -> None:
        """End the session on the host, with all it holds."""
        self._call.cleanup_session(False)


class _Chunks:
    """The values of a stream, as they come. Cancels the call when it is no longer wanted."""

    def __init__(self, call: _native.HostCall) -> None:
        self._call = call

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self._call.chunk()

    def close(self) -> None:
        """Cancel the call."""
        self._call.cancel()

    def __del__(self) -> None:
        self._call.cancel()


async def _until_ready(call: _native.HostCall) -> None:
    """Wait until there is something to take; cancel the call when the wait is cancelled."""
    try:
        await until_done(call.ready)
    except BaseException:
        call.cancel()
        raise
