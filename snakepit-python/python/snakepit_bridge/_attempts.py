"""The attempts of a call that the client may repeat."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from snakepit_bridge.errors import OverloadedError, ToolFailed

if TYPE_CHECKING:
    from snakepit_bridge._call_options import CallOptions
    from snakepit_bridge.errors import SnakepitError

#: The pause before the first retry, in seconds. It doubles with each retry.
_FIRST_PAUSE = 0.1
#: The maximum pause, unless the host asks for a longer one.
_MAX_PAUSE = 10.0
#: The maximum pause for which a host can ask, in seconds. Timers fail for much longer ones.
_MAX_RETRY_AFTER = 24 * 3600.0
#: The pause between attempts to get room, if the host suggests none, and its minimum.
_ROOM_PAUSE = 0.1
_MIN_ROOM_PAUSE = 0.01
#: The last attempt to get room starts this long before the deadline.
_DEADLINE_MARGIN = 0.1


class Attempts:
    """Decides whether a failed call is repeated, and after which pause. One object for each call."""

    __slots__ = ("_idempotent", "_pause", "_retries", "_room_end", "end")

    def __init__(self, options: CallOptions) -> None:
        #: The deadline of all attempts together, on the clock of ``time.monotonic``.
        self.end = options.end()
        self._room_end = time.monotonic() + options.wait_for_room if options.wait_for_room > 0 else None
        self._retries = options.retries
        self._idempotent = options.idempotent
        self._pause = _FIRST_PAUSE

    def timeout(self) -> float | None:
        """Return the remaining time for an attempt that begins now. ``None`` without a deadline."""
        return None if self.end == float("inf") else max(self.end - time.monotonic(), 1e-6)

    def pause_after(self, error: SnakepitError) -> float | None:
        """Return the seconds until the next attempt, or ``None`` if this error ends the call."""
        if isinstance(error, ToolFailed):
            return None
        now = time.monotonic()
        if self._room_end is not None and isinstance(error, OverloadedError) and not error.may_have_run:
            last = min(self._room_end, self.end - _DEADLINE_MARGIN)
            if now < last:
                pause = max(_ROOM_PAUSE if error.retry_after is None else error.retry_after, _MIN_ROOM_PAUSE)
                return min(_with_jitter(pause), last - now)
        if self._retries == 0 or not (error.is_retryable or (self._idempotent and error.is_transient)):
            return None
        pause = _with_jitter(max(self._pause, min(error.retry_after or 0.0, _MAX_RETRY_AFTER)))
        if now + pause >= self.end:
            return None
        self._retries -= 1
        self._pause = min(2 * self._pause, _MAX_PAUSE)
        return pause


def _with_jitter(pause: float) -> float:
    """Extend a pause by up to half, so that clients that were rejected together do not return together."""
    return pause * (1 + random.random() / 2)  # noqa: S311
