"""The options of a client's calls, and the delivery of their reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _checked
from snakepit_bridge._readiness import until_done
from snakepit_bridge.errors import InvalidArgumentError

if TYPE_CHECKING:
    from snakepit_bridge import _native
    from snakepit_bridge.reports import LogLine, Progress

    #: A report of the native client: progress as its done, total and message, or a line of output as its text, stream,
    #: level, logger and seconds since the epoch.
    _Report = tuple[tuple[float, float | None, str] | None, tuple[str, str, int, str, float] | None]

#: The maximum number of retries, so that a wrong number does not retry for hours.
_MAX_RETRIES = 1000


@dataclass(frozen=True)
class CallOptions:
    """The options of calls. The native client checks the timeout."""

    session_id: str = ""
    timeout: float | None = None
    idempotent: bool = False
    metadata: Mapping[str, str] | None = None
    retries: int = 0
    wait_for_room: float = 0.0
    progress: Callable[[Progress], object] | None = None
    logs: Callable[[LogLine], object] | None = None

    @classmethod
    def of(
        cls,
        session_id: str,
        timeout: float | None,
        idempotent: bool,
        metadata: Mapping[str, str] | None,
        retries: int,
        wait_for_room: float,
        progress: Callable[[Progress], object] | None,
        logs: Callable[[LogLine], object] | None,
    ) -> CallOptions:
        """Check the options.

        Raises:
            InvalidArgumentError: An option is out of range or has the wrong type.
        """
        return cls(
            session_id,
            timeout,
            _checked.flag("idempotent", idempotent),
            _checked.metadata(metadata) or None,
            _checked.integer("retries", retries, most=_MAX_RETRIES),
            _wait("wait_for_room", wait_for_room),
            _function("progress", progress),
            _function("logs", logs),
        )

    @property
    def repeats(self) -> bool:
        """Whether the client may repeat a failed call."""
        return self.retries > 0 or self.wait_for_room > 0

    @property
    def reports(self) -> bool:
        """Whether the caller receives reports."""
        return self.progress is not None or self.logs is not None

    def end(self) -> float:
        """Return the deadline of a call that begins now, on the clock of ``time.monotonic``."""
        return float("inf") if self.timeout is None else time.monotonic() + float(self.timeout)

    def session_call(self, native: _native.HostClient) -> _native.Call:
        """Return the native object for requests that are not calls."""
        return native.session_call(self.session_id, self.timeout, self.retries)

    def start(
        self,
        native: _native.HostClient,
        name: str,
        arguments: Mapping[str, Any],
        *,
        stream: bool,
        timeout: float | None = None,
    ) -> _native.HostCall:
        """Start a call. ``timeout`` replaces that of the options in a repeated call."""
        return native.start(
            name,
            arguments,
            session_id=self.session_id,
            timeout=self.timeout if timeout is None else timeout,
            idempotent=self.idempotent,
            stream=stream,
            metadata=self.metadata,
            progress=self.progress is not None,
            logs=self.logs is not None,
        )

    def deliver_until_ready(self, call: _native.HostCall, end: float) -> None:
        """Wait until a result or chunk is available, and deliver the reports that arrive before it.

        Drops the reports that remain at the deadline, so that slow functions do not delay the end of the call.
        """
        while reports := call.next_reports():
            if not self.deliver(reports, end):
                call.ignore_reports()
                return

    async def until_ready(self, call: _native.HostCall, end: float) -> None:
        """Do the same as `deliver_until_ready`, without blocking the event loop.

        Cancels the call if the wait is cancelled or fails.
        """
        try:
            await until_done(call.ready)
            if self.reports:
                while reports := call.take_reports():
                    if not self.deliver(reports, end):
                        call.ignore_reports()
                    await until_done(call.ready)
        except BaseException:
            call.cancel()
            raise

    def deliver(self, reports: list[_Report], end: float) -> bool:
        """Pass reports to the functions of the caller. Return ``False`` if the deadline passed before the last one."""
        from snakepit_bridge.reports import LogLine, Progress

        for progress, line in reports:
            if time.monotonic() > end:
                return False
            if progress is not None and self.progress is not None:
                self.progress(Progress(*progress))
            if line is not None and self.logs is not None:
                text, stream, level, logger, seconds = line
                received = datetime.fromtimestamp(seconds, UTC)
                self.logs(LogLine(text, "stdout" if stream == "stdout" else "stderr", level, logger, received))
        return True


def _function(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise _checked.wrong_type(name, value, "a function or None")
    return value


def _wait(name: str, value: object) -> float:
    """Check a number of seconds, which may be 0 or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _checked.wrong_type(name, value, "a number of seconds")
    if not value >= 0:
        raise InvalidArgumentError(f"`{name}` is {value}, expected at least 0 seconds")
    return float(min(value, 1e18))
