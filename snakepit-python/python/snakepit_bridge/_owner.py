"""The owner of the code that runs on the main thread: the current call, an earlier call, or the worker."""

from __future__ import annotations

# Not from `contextvars`, whose file only renames this module.
from _contextvars import ContextVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from typing import Any

    from snakepit_bridge._native import ConcurrentCall, ThreadCall
    from snakepit_bridge.session_context import SessionContext

#: The owner of code that belongs to the worker and not to a call.
WORKER = object()

#: The owner of the running code. Tasks, timers and callbacks inherit it. ``None`` outside the worker's event loop, and
#: for callbacks from other threads.
OWNER: ContextVar[object | None] = ContextVar("snakepit_owner", default=None)

#: The owner for which the event loop runs. ``None`` while the loop does not run. In a worker that runs calls
#: concurrently, its runner, which equals the owner of no call.
running: object | None = None

#: The number of timers of a call above which the runtime removes those that have run.
_MIN_TIMERS = 16

#: The delay after which a timer counts as run if it does not show its state, in seconds. Timers run late while a
#: callback blocks the event loop.
_MAX_DELAY = 60.0


class CallOwner:
    """The owner of one call's code, in a worker that runs several calls concurrently."""

    __slots__ = (
        "_timer_limit",
        "call",
        "context",
        "interrupted",
        "is_cancelled",
        "is_interruptible",
        "task",
        "tasks",
        "thread",
        "timers",
    )

    def __init__(self, call: ConcurrentCall) -> None:
        self.call = call
        #: The context of the call, once it has one.
        self.context: SessionContext | None = None
        #: The task that runs the call.
        self.task: asyncio.Task[Any] | None = None
        #: The tasks that code of the call started and that have not ended.
        self.tasks: set[asyncio.Task[Any]] = set()
        #: The synchronous function of the call, while it runs in a thread.
        self.thread: ThreadCall | None = None
        #: Whether cancellation may interrupt the code that runs.
        self.is_interruptible = False
        #: Whether the cancellation has reached the code of the call. The code then cleans up, and a second interruption
        #: would end its cleanup.
        self.is_cancelled = False
        #: The callback of the event loop in which an exception was raised because it blocked the loop.
        self.interrupted: object | None = None
        #: The timers that code of the call started. Those that have run remain until the list is full.
        self.timers: list[asyncio.TimerHandle] = []
        self._timer_limit = _MIN_TIMERS

    def add_timer(self, timer: asyncio.TimerHandle, now: float) -> None:
        """Record a timer until it has run. ``now`` is the time of the event loop."""
        timers = self.timers
        if len(timers) >= self._timer_limit:
            timers[:] = [timer for timer in timers if _is_waiting(timer, now)]
            # Twice the number of timers that wait, so that each addition costs a constant time on average.
            self._timer_limit = max(_MIN_TIMERS, 2 * len(timers))
        timers.append(timer)

    def cancel_timers(self) -> None:
        """Cancel the timers of the call. Those that have run ignore that."""
        while self.timers:
            self.timers.pop().cancel()


def _is_waiting(timer: asyncio.TimerHandle, now: float) -> bool:
    """Return whether a timer may still run. Only asyncio's timers show that."""
    if timer.cancelled():
        return False
    return bool(getattr(timer, "_scheduled", timer.when() > now - _MAX_DELAY))
