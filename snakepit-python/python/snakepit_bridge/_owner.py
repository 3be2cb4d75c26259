"""The owner of the code that runs on the main thread: the current call, an earlier call, or the worker."""

from __future__ import annotations

from contextvars import ContextVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from typing import Any

    from snakepit_bridge._native import ConcurrentCall, ThreadCall

#: The owner of code that belongs to the worker and not to a call.
WORKER = object()

#: The owner of the running code. Tasks, timers and callbacks inherit it. ``None`` outside the worker's event loop, and
#: for callbacks from other threads.
OWNER: ContextVar[object | None] = ContextVar("snakepit_owner", default=None)

#: The owner for which the event loop runs. ``None`` while the loop does not run.
running: object | None = None


class CallOwner:
    """The owner of the code of one call, in a worker that runs several concurrently."""

    __slots__ = ("call", "is_interruptible", "task", "tasks", "thread")

    def __init__(self, call: ConcurrentCall) -> None:
        self.call = call
        #: The task that runs the call.
        self.task: asyncio.Task[Any] | None = None
        #: The tasks that code of the call started and that have not ended.
        self.tasks: set[asyncio.Task[Any]] = set()
        #: The plain function of the call, while it runs in a thread.
        self.thread: ThreadCall | None = None
        #: Whether cancellation may interrupt the code that runs.
        self.is_interruptible = False
