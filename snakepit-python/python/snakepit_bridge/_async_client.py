"""Clients for coroutines: the methods of `client`, without blocking the event loop."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _checked, _connection, _native, _running_calls
from snakepit_bridge._async_state import AsyncGlobalPrograms, AsyncPrograms, AsyncVariables
from snakepit_bridge._call_options import CallOptions
from snakepit_bridge._connection import Connection, in_background
from snakepit_bridge._listings import PoolStatus, SessionInfo, ToolInfo, WorkerStatus
from snakepit_bridge._tool_signatures import with_signatures

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from snakepit_bridge._call import CallLike
    from snakepit_bridge.reports import LogLine, Progress


class AsyncCaller:
    """Calls over one connection with fixed options: an :class:`AsyncClient`, or what its ``options`` returns."""

    def __init__(self, connection: Connection, options: CallOptions) -> None:
        self._connection = connection
        self._native = connection.native
        self._options = options
        self._call: CallLike = options.session_call(self._native)

    @property
    def global_programs(self) -> AsyncGlobalPrograms:
        """The host's own programs, shared by all sessions."""
        return AsyncGlobalPrograms(self._call)

    async def tools(self) -> dict[str, ToolInfo]:
        """List the tools of the host by name. See :meth:`Client.tools`."""
        return with_signatures(await self._operation(lambda operations: operations.tools()))

    async def workers(self) -> list[WorkerStatus]:
        """List the workers of the host. See :meth:`Client.workers`."""
        workers: list[WorkerStatus] = await self._operation(lambda operations: operations.workers())
        return workers

    async def status(self) -> PoolStatus:
        """Describe the pool of the host. See :meth:`Client.status`."""
        status: PoolStatus = await self._operation(lambda operations: operations.status())
        return status

    async def restart_workers(self) -> None:
        """Replace all workers of the host. See :meth:`Client.restart_workers`.

        Cancelling the task ends the wait. The restart continues.
        """
        _connection.check_restart(await self._operation(lambda operations: operations.restart_workers()))

    async def call(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool and wait for its result. Cancelling the task cancels the call.

        Every keyword argument is an argument of the tool. Raises as :meth:`Client.call` does.

        >>> await client.options(timeout=5).call("add", a=1, b=2)  # doctest: +SKIP
        3
        """
        return await _running_calls.run_async(self._native, self._options, name, arguments)

    def stream(self, name: str, /, **arguments: Any) -> AsyncIterator[Any]:
        """Call a tool that streams its results, and return an asynchronous iterator.

        >>> async for number in client.stream("count", n=3):  # doctest: +SKIP
        ...     print(number)

        Closing the iterator or cancelling its task cancels the call. Raises as :meth:`Client.call` does.
        """
        return _running_calls.chunks_async(self._native, self._options, name, arguments)

    def map(
        self,
        name: str,
        items: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        concurrency: int = _running_calls.CONCURRENCY,
        return_exceptions: bool = False,
    ) -> AsyncIterator[Any]:
        """Call a tool once for each item, and iterate over the results in the order of the items.

        >>> [square async for square in client.map("square", [{"x": 1}, {"x": 2}])]  # doctest: +SKIP
        [1, 4]

        See :meth:`Client.map`. The items may be an asynchronous iterable. Closing the iterator cancels the calls.
        """
        _running_calls.check_items(items, is_async=True)
        name = _checked.text("name", name)
        return _running_calls.map_async(
            lambda arguments: _running_calls.run_async(self._native, self._options, name, arguments),
            items,
            _checked.integer("concurrency", concurrency, least=1),
            _checked.flag("return_exceptions", return_exceptions),
        )

    async def _operation(self, request: Callable[[_native.Operations], Any]) -> Any:
        return await in_background(self._call, lambda call: request(_native.Operations(call)))


class AsyncClient(AsyncCaller):
    """A connection to a host for coroutines, usable from several event loops.

    >>> async with AsyncClient("127.0.0.1:50051") as client:  # doctest: +SKIP
    ...     await client.call("add", a=1, b=2)
    3

    ``async with`` connects and closes. Otherwise, the first request connects. See :class:`Client` for the arguments,
    broken connections, and the exceptions of tools.

    Raises:
        InvalidArgumentError: The address or a header is malformed, or the timeout is out of range.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        connect_timeout: float = 5.0,
        exceptions: Iterable[type[Exception]] | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(Connection(address, connect_timeout, exceptions, token, headers), CallOptions())

    async def connect(self) -> Self:
        """Connect, unless the client is connected, and return the client.

        Raises:
            AccessDeniedError: The host, or a proxy in front of it, denied access.
            HostUnavailableError: The host cannot be reached.
            ConnectTimeoutError: The host does not answer in time.
            ClientClosedError: The client is closed.
        """
        await _connection.connect_async(self._native, None)
        return self

    async def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the host can be reached and serves calls. See :meth:`Client.wait_ready`."""
        await _connection.wait_ready_async(self._connection, timeout)

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
    ) -> AsyncCaller:
        """Return a caller on this connection whose calls have these options. See :meth:`Client.options`.

        ``progress`` and ``logs`` are synchronous functions, which run on the event loop and must not block it.
        """
        options = CallOptions.of("", timeout, idempotent, metadata, retries, wait_for_room, progress, logs)
        return AsyncCaller(self._connection, options)

    async def session(
        self,
        session_id: str,
        *,
        timeout: float | None = None,
        ttl: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncSession:
        """Return the session with this id. Creates it if it does not exist. See :meth:`Client.session`."""
        session_id, seconds, entries = _connection.new_session(session_id, ttl, metadata)
        session = AsyncSession(self._connection, CallOptions(session_id=session_id, timeout=timeout))
        await session._operation(lambda operations: operations.open_session(seconds, entries))
        return session

    async def close(self, timeout: float | None = None) -> None:
        """Close the client. Its watches and further calls raise ``ClientClosedError``. See :meth:`Client.close`."""
        await _connection.close_async(self._native, timeout)

    async def __aenter__(self) -> Self:
        """Connect, and return the client."""
        return await self.connect()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the client. Running calls continue."""
        await self.close()

    def __repr__(self) -> str:
        """Return a representation with the address."""
        return f"<AsyncClient {self._connection.address}>"


class AsyncSession(AsyncCaller, AsyncVariables):
    """A session of a host for coroutines, created by :meth:`AsyncClient.session`.

    Its calls run in the session. Its variables are those of :class:`AsyncVariables`, shared with tools:
    ``await session.set("rate", 0.5)``.
    """

    @property
    def session_id(self) -> str:
        """The id of the session."""
        return self._options.session_id

    @property
    def programs(self) -> AsyncPrograms:
        """The programs of the session: named blobs, such as trained models, that the host stores."""
        return AsyncPrograms(self._call)

    async def info(self) -> SessionInfo:
        """Describe the session: its metadata, its TTL and its sizes. See :meth:`Session.info`."""
        info: SessionInfo = await self._operation(lambda operations: operations.session_info())
        return info

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
    ) -> AsyncSession:
        """Return this session with these options, which replace all others. See :meth:`Client.options`."""
        options = CallOptions.of(self.session_id, timeout, idempotent, metadata, retries, wait_for_room, progress, logs)
        return AsyncSession(self._connection, options)

    def _until(self, end: float) -> AsyncSession:
        if self._options.timeout is None:
            return self
        left = max(end - time.monotonic(), 0.001)
        return AsyncSession(self._connection, replace(self._options, timeout=min(left, self._options.timeout)))

    async def delete(self) -> None:
        """End the session: delete it with its variables and programs.

        Raises:
            NotFoundError: The session does not exist.
        """
        await in_background(self._call, lambda call: call.cleanup_session(False))

    def __repr__(self) -> str:
        """Return a representation with the id and the address."""
        return f"<AsyncSession {self.session_id!r} at {self._connection.address}>"
