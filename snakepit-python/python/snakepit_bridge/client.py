"""Clients of a host: they call its tools and share its sessions, from any Python program.

>>> with Client("127.0.0.1:50051") as client:  # doctest: +SKIP
...     client.call("add", a=1, b=2)
...     client.session("alice")["rate"] = 0.5
3

:class:`Client` blocks its thread. :class:`AsyncClient` has the same methods for coroutines.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _checked, _connection, _native, _running_calls
from snakepit_bridge._async_client import AsyncCaller, AsyncClient, AsyncSession
from snakepit_bridge._call_options import CallOptions
from snakepit_bridge._connection import Connection
from snakepit_bridge._listings import PoolStatus, SessionInfo, ToolInfo, WorkerStatus
from snakepit_bridge._tool_signatures import with_signatures
from snakepit_bridge.programs import GlobalPrograms, Programs
from snakepit_bridge.variables import SessionVariables

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from snakepit_bridge._call import CallLike
    from snakepit_bridge.reports import LogLine, Progress

__all__ = [
    "AsyncCaller",
    "AsyncClient",
    "AsyncSession",
    "Caller",
    "Client",
    "PoolStatus",
    "Session",
    "SessionInfo",
    "ToolInfo",
    "WorkerStatus",
]


class Caller:
    """Calls over one connection with fixed options: a :class:`Client`, or what its ``options`` returns."""

    def __init__(self, connection: Connection, options: CallOptions) -> None:
        self._connection = connection
        self._native = connection.native
        self._options = options
        self._call: CallLike = options.session_call(self._native)

    @property
    def global_programs(self) -> GlobalPrograms:
        """The host's own programs, shared by all sessions."""
        return GlobalPrograms(self._call)

    def tools(self) -> dict[str, ToolInfo]:
        """List the tools of the host by name: their descriptions, signatures and JSON Schemas.

        >>> print(client.tools()["add"]["signature"])  # doctest: +SKIP
        add(*, a: int, b: float = 1.0) -> float

        Raises:
            HostUnavailableError: The host cannot be reached, or the connection broke.
        """
        return with_signatures(self._operations().tools())

    def workers(self) -> list[WorkerStatus]:
        """List the workers of the host. Raises as :meth:`tools` does."""
        return self._operations().workers()

    def status(self) -> PoolStatus:
        """Describe the pool of the host: its queue, its workers, and the number of ended calls by outcome.

        Raises:
            HostUnavailableError: As for :meth:`tools`.
            UnsupportedError: The host is an older version, or the original Snakepit.
        """
        return self._operations().status()

    def restart_workers(self) -> None:
        """Replace all workers of the host, for example after the code of their adapter has changed.

        In each slot, the new worker is ready before the old one gets no more calls. Old workers finish their calls, and
        sessions stay. Waits until all workers are replaced, without a time limit unless the options have a ``timeout``.
        After that time, the restart continues.

        >>> client.options(timeout=300).restart_workers()  # doctest: +SKIP

        Raises:
            SnakepitError: A new worker did not start. The old workers that were not replaced remain in service. The
                traceback of the new worker is the cause of the error.
            AccessDeniedError: This client has no permission to restart the workers. A host without an authorization
                function permits restarts only to clients on the same machine.
            DeadlineExceededError: The timeout passed.
            UnsupportedError: The host is an older version, or the original Snakepit.
            HostUnavailableError: As for :meth:`tools`. If the connection broke, the restart continues.
        """
        _connection.check_restart(self._operations().restart_workers())

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
        return _running_calls.run(self._native, self._options, name, arguments)

    async def call_async(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool without blocking the event loop.

        Cancelling the task cancels the call. Raises as :meth:`call` does.
        """
        return await _running_calls.run_async(self._native, self._options, name, arguments)

    def stream(self, name: str, /, **arguments: Any) -> Iterator[Any]:
        """Call a tool that streams its results, and return an iterator. Dropping it cancels the call.

        >>> for number in client.stream("count", n=3):  # doctest: +SKIP
        ...     print(number)

        Raises the same exceptions as :meth:`call`, even during the iteration.
        """
        return _running_calls.Chunks(self._native, self._options, name, arguments)

    def stream_async(self, name: str, /, **arguments: Any) -> AsyncIterator[Any]:
        """Call a tool that streams its results, without blocking the event loop. See :meth:`stream`."""
        return _running_calls.chunks_async(self._native, self._options, name, arguments)

    def map(
        self,
        name: str,
        items: Iterable[Mapping[str, Any]],
        *,
        concurrency: int = _running_calls.CONCURRENCY,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """Call a tool once for each item, and iterate over the results in the order of the items.

        >>> list(client.map("square", [{"x": 1}, {"x": 2}]))  # doctest: +SKIP
        [1, 4]

        The calls begin with the iteration. Closing or dropping the iterator cancels the running ones.

        Args:
            name: The tool.
            items: The arguments of each call. They are read when the call can begin, so they may be a generator.
            concurrency: The maximum number of calls that run, or whose results are unread. If it exceeds the number of
                workers plus the queue limit of the host, set ``wait_for_room`` in the options.
            return_exceptions: Whether to return the exception of a failed call in its place. Otherwise the iteration
                raises it, and ends.

        Raises:
            InvalidTypeError: The items are not mappings.
        """
        _running_calls.check_items(items)
        return _running_calls.map_calls(
            self._native,
            self._options,
            _checked.text("name", name),
            items,
            _checked.integer("concurrency", concurrency, least=1),
            _checked.flag("return_exceptions", return_exceptions),
        )

    def _operations(self) -> _native.Operations:
        return _native.Operations(self._options.session_call(self._native))


class Client(Caller):
    """A connection to a host, usable from several threads. All calls share one stream.

    If the connection breaks, the next call reconnects. Calls that were not sent yet, and calls marked ``idempotent``,
    are sent again. Other running calls and watches raise ``HostUnavailableError``. After ``fork()``, the child must
    create its own client: the parent's client raises ``HostUnavailableError`` there.

    >>> client = Client("unix:/run/snakepit/host.sock")  # doctest: +SKIP

    A tool failure raises :class:`ToolFailed`. If this program has imported the class of the tool's exception, the
    error is also an instance of that class, so ``except OutOfStock`` and ``except ValueError`` work. The client imports
    no module and does not call ``__init__``: the object has the ``args`` and the published attributes of the tool's
    exception. Errors of this package keep their meaning: only ``ToolError`` is raised for a tool.

    Args:
        address: ``host:port`` or ``unix:/path/to/socket``. By default, the value of the environment variable
            ``SNAKEPIT_SERVER``, or else ``127.0.0.1:50051``.
        connect: Whether to connect now. Otherwise, the first request or :meth:`wait_ready` connects.
        connect_timeout: Seconds within which each attempt to connect must succeed, for calls and all other requests.
            ``math.inf`` is the maximum.
        exceptions: The classes that a tool failure may raise in addition to ``ToolFailed``, for example for a host
            that you do not trust. Empty for none. By default, all classes of imported modules, and builtins.
        token: A token that each request has in the header ``authorization``, as ``Bearer TOKEN``. Hosts do not check it
            themselves. A proxy does, or the server that mounts the host. The client has no TLS, so the token is
            readable on the network.
        headers: Additional headers for each request. Those of gRPC, HTTP and Snakepit are reserved.

    Raises:
        InvalidArgumentError: The address or a header is malformed, or the timeout is out of range.
        AccessDeniedError: The host, or a proxy in front of it, denied access.
        HostUnavailableError: The host cannot be reached.
        ConnectTimeoutError: The host does not answer in time. A subclass of ``HostUnavailableError``.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        connect: bool = True,
        connect_timeout: float = 5.0,
        exceptions: Iterable[type[Exception]] | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        connect = _checked.flag("connect", connect)
        super().__init__(Connection(address, connect_timeout, exceptions, token, headers), CallOptions())
        if connect:
            self._native.connect()

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the host can be reached and serves calls, for example because it starts later than this program.

        >>> client = Client(connect=False)  # doctest: +SKIP
        >>> client.wait_ready(timeout=60)  # doctest: +SKIP

        Args:
            timeout: Seconds.

        Raises:
            ConnectTimeoutError: The host was not ready in time. The message has the last problem.
            AccessDeniedError: The host, or a proxy in front of it, denied access.
            ClientClosedError: The client is closed.
        """
        _connection.wait_ready(self._connection, timeout)

    def options(
        self,
        *,
        timeout: float | None = None,
        idempotent: bool = False,
        metadata: Mapping[str, str] | None = None,
        retries: int = 0,
        wait_for_room: float = 0.0,
        progress: Callable[[Progress], object] | None = None,
        logs: Callable[[LogLine], object] | None = None,
    ) -> Caller:
        """Return a caller on this connection whose calls have these options, which replace all others.

        Args:
            timeout: Seconds within which a call must end, including its time in the queue and all retries. By default
                the host's limit. Also limits each request for programs or variables (30 seconds by default), and each
                watch as a whole. The client enforces the timeout itself, in case the host hangs. ``math.inf`` is the
                maximum.
            idempotent: Whether running a call twice is harmless. If so, the host and the client may retry it.
            metadata: Entries that the tool reads from the metadata of its context.
            retries: How often the client repeats a failed call if that is safe and may succeed
                (:attr:`SnakepitError.is_retryable`). It repeats idempotent calls after all transient errors. It waits
                for the time that the host asks for, or for a growing pause, but not beyond the timeout. It does not
                repeat a stream that has produced a value. Requests that only read variables, programs or listings are
                repeated after all transient errors, and writes never.
            wait_for_room: Seconds for which to repeat a call while the queue of the host is full. These attempts do not
                count as retries. The timeout includes the wait.
            progress: A function for the progress that the tool reports. It runs in the thread or task that waits for
                the call. An exception in it cancels the call. Reports that the function has not received at the
                deadline are dropped.
            logs: A function for the output of the tool, line by line. All lines precede the result. The host passes
                them on only to callers that may see tracebacks.

        Raises:
            InvalidArgumentError: An option is out of range or has the wrong type.
        """
        options = CallOptions.of("", timeout, idempotent, metadata, retries, wait_for_room, progress, logs)
        return Caller(self._connection, options)

    def session(
        self,
        session_id: str,
        *,
        timeout: float | None = None,
        ttl: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Session:
        """Return the session with this id. Creates it if it does not exist.

        Args:
            session_id: The id.
            timeout: Seconds within which this request (30 by default), and each call and request of the session, must
                end. See :meth:`options`.
            ttl: Seconds without use after which a new session expires, rounded up to whole seconds. By default the
                host's setting. Does not change an existing session.
            metadata: The metadata of a new session.
        """
        session_id, seconds, entries = _connection.new_session(session_id, ttl, metadata)
        _connection.operations(self._native, session_id, timeout).open_session(seconds, entries)
        return Session(self._connection, CallOptions(session_id=session_id, timeout=timeout))

    def close(self, timeout: float | None = None) -> None:
        """Close the client. Its watches and further calls raise ``ClientClosedError``.

        Running calls and streams continue to their end, on the open connection, which then closes. Without ``timeout``,
        this method does not wait for them. With it, it waits that long and then ends the remaining ones with
        ``ClientClosedError``.

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

    def __repr__(self) -> str:
        """Return a representation with the address."""
        return f"<Client {self._connection.address}>"


class Session(Caller, SessionVariables):
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

    def info(self) -> SessionInfo:
        """Describe the session: its metadata, its TTL and its sizes. Renews the session.

        Raises:
            NotFoundError: The session does not exist.
        """
        return self._operations().session_info()

    def options(
        self,
        *,
        timeout: float | None = None,
        idempotent: bool = False,
        metadata: Mapping[str, str] | None = None,
        retries: int = 0,
        wait_for_room: float = 0.0,
        progress: Callable[[Progress], object] | None = None,
        logs: Callable[[LogLine], object] | None = None,
    ) -> Session:
        """Return this session with these options, which replace all others. See :meth:`Client.options`."""
        options = CallOptions.of(self.session_id, timeout, idempotent, metadata, retries, wait_for_room, progress, logs)
        return Session(self._connection, options)

    def _until(self, end: float) -> Session:
        if self._options.timeout is None:
            return self
        left = max(end - time.monotonic(), 0.001)
        return Session(self._connection, replace(self._options, timeout=min(left, self._options.timeout)))

    def delete(self) -> None:
        """End the session: delete it with its variables and programs.

        Raises:
            NotFoundError: The session does not exist.
        """
        self._call.cleanup_session(False)

    def __repr__(self) -> str:
        """Return a representation with the id and the address."""
        return f"<Session {self.session_id!r} at {self._connection.address}>"
