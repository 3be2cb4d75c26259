"""The connection of a client: its address, and waits for the host."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from snakepit_bridge import _checked, _native
from snakepit_bridge._readiness import until_done
from snakepit_bridge.errors import (
    ConnectTimeoutError,
    DeadlineExceededError,
    HostUnavailableError,
    InvalidArgumentError,
    RemoteTraceback,
    SnakepitError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from snakepit_bridge._call import CallLike
    from snakepit_bridge._native import Completions

_T = TypeVar("_T")

#: The environment variable with the address of the host.
SERVER_VARIABLE = "SNAKEPIT_SERVER"
#: The address without an argument and without the environment variable, as for the command line.
DEFAULT_ADDRESS = "127.0.0.1:50051"

#: The first pause between two checks of a host that is not ready, in seconds. It doubles up to the maximum.
_FIRST_PAUSE = 0.01
_MAX_PAUSE = 0.25
#: The largest TTL on the wire.
_MAX_TTL = 2**62


class Connection:
    """A connection to a host, which the first request opens."""

    def __init__(
        self,
        address: str | None,
        connect_timeout: float,
        exceptions: Iterable[type[Exception]] | None,
        token: str | None,
        headers: Mapping[str, str] | None,
    ) -> None:
        entries = _headers(token, headers)
        classes = None if exceptions is None else _exception_classes(exceptions)
        from_environment = os.environ.get(SERVER_VARIABLE) if address is None else None
        self.address = from_environment or DEFAULT_ADDRESS if address is None else address
        try:
            self.native = _native.HostClient(self.address, connect_timeout, classes, entries)
        except InvalidArgumentError as error:
            if not from_environment or "address" not in str(error):
                raise
            raise InvalidArgumentError(f"the environment variable {SERVER_VARIABLE}: {error}") from None
        self._process = os.getpid()

    def readiness(self, timeout: float) -> Readiness:
        """Return the state of a wait for the host.

        Raises:
            InvalidArgumentError: The timeout is out of range.
        """
        self.native.session_call("", timeout)
        return Readiness(self, float(timeout), self._process)


class Readiness:
    """A wait until a host serves calls."""

    def __init__(self, connection: Connection, timeout: float, process: int) -> None:
        self._address = connection.address
        self._timeout = timeout
        self._process = process
        self._end = time.monotonic() + timeout
        self._pause = _FIRST_PAUSE
        self._problem = "it does not serve calls yet, because no worker is ready"

    def left(self) -> float:
        """Return the remaining seconds."""
        return max(self._end - time.monotonic(), 1e-3)

    def note(self, error: HostUnavailableError | DeadlineExceededError) -> None:
        """Remember why the host is not ready. Raise the error if that cannot change."""
        if os.getpid() != self._process:
            raise error
        self._problem = str(error)

    def pause(self) -> float:
        """Return the seconds until the next check.

        Raises:
            ConnectTimeoutError: The time is over.
        """
        if time.monotonic() + self._pause >= self._end:
            raise ConnectTimeoutError(
                f"the host at {self._address} was not ready within {self._timeout:g} s: {self._problem}"
            )
        pause, self._pause = self._pause, min(2 * self._pause, _MAX_PAUSE)
        return pause


def wait_ready(connection: Connection, timeout: float) -> None:
    """Wait until a host serves calls."""
    readiness = connection.readiness(timeout)
    while True:
        try:
            connection.native.connect(readiness.left())
            if operations(connection.native, "", readiness.left()).is_ready():
                return
        except (HostUnavailableError, DeadlineExceededError) as error:
            readiness.note(error)
        time.sleep(readiness.pause())


async def wait_ready_async(connection: Connection, timeout: float) -> None:
    """Wait until a host serves calls, without blocking the event loop."""
    import asyncio

    readiness = connection.readiness(timeout)
    while True:
        try:
            await connect_async(connection.native, readiness.left())
            call = connection.native.session_call("", readiness.left())
            if await in_background(call, lambda call: _native.Operations(call).is_ready()):
                return
        except (HostUnavailableError, DeadlineExceededError) as error:
            readiness.note(error)
        await asyncio.sleep(readiness.pause())


async def connect_async(native: _native.HostClient, timeout: float | None) -> None:
    """Connect, unless the client is connected."""
    pending = await until_done(lambda completions, key: native.start_connect(timeout, completions, key))
    pending.result()


async def close_async(native: _native.HostClient, timeout: float | None) -> None:
    """Close a client, and wait for its calls up to the timeout."""
    if timeout is None:
        native.close(None)
        return
    pending = await until_done(lambda completions, key: native.start_close(timeout, completions, key))
    pending.result()


async def in_background(call: CallLike, request: Callable[[Any], _T]) -> _T:
    """Make one request without blocking the event loop. Cancelling the task ends the request.

    Args:
        call: The native call.
        request: Makes the request, with the call that it receives. It must return the answer unchanged, because it
            is a pending request then.
    """

    def start(completions: Completions, key: int) -> _native.PendingRequest:
        return cast("_native.PendingRequest", request(cast("_native.Call", call).in_background(completions, key)))

    pending = await until_done(start)
    return cast("_T", pending.result())


def operations(native: _native.HostClient, session_id: str, timeout: float | None) -> _native.Operations:
    """Return the requests other than those for calls, variables and programs."""
    return _native.Operations(native.session_call(session_id, timeout))


def check_restart(failure: tuple[str, str] | None) -> None:
    """Check the outcome of a restart: the problem and the traceback of a worker that did not start, or ``None``.

    Raises:
        SnakepitError: A new worker did not start.
    """
    if failure is not None:
        problem, traceback = failure
        error = SnakepitError(f"the workers were not restarted: {problem}")
        raise error from (RemoteTraceback(traceback) if traceback else None)


def new_session(session_id: object, ttl: object, metadata: Mapping[str, str] | None) -> tuple[str, int, dict[str, str]]:
    """Check the options of a new session, and return its TTL in whole seconds, with 0 for the default.

    Raises:
        InvalidArgumentError: An option is out of range or has the wrong type.
    """
    name = _checked.name("session_id", session_id)
    seconds = _checked.seconds("ttl", ttl)
    if seconds is not None and seconds > _MAX_TTL:
        raise InvalidArgumentError(f"`ttl` is {seconds}, expected at most {_MAX_TTL} seconds")
    # Rounded up.
    return name, 0 if seconds is None else -int(-seconds // 1), _checked.metadata(metadata)


def _headers(token: object, headers: object) -> dict[str, str]:
    entries: dict[str, str] = {}
    if headers is not None:
        if not isinstance(headers, Mapping):
            raise _checked.wrong_type("headers", headers, "a mapping from names to values")
        for name, value in headers.items():
            entries[_checked.text("name of a header", name)] = _checked.text(f"header {name}", value)
    if token is not None:
        if any(name.lower() == "authorization" for name in entries):
            raise InvalidArgumentError("`token` sets the header `authorization`, which `headers` sets too")
        entries["authorization"] = f"Bearer {_checked.text('token', token)}"
    return entries


def _exception_classes(value: object) -> tuple[type[Exception], ...]:
    expected = "exception classes"
    if not isinstance(value, Iterable):
        raise _checked.wrong_type("exceptions", value, f"a list of {expected}")
    classes = tuple(value)
    for index, kind in enumerate(classes):
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            raise _checked.wrong_type(f"exceptions[{index}]", kind, expected)
    return classes
