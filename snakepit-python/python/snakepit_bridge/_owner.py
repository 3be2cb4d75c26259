"""The owner of the code that runs on the main thread: the current call, an earlier call, or the worker."""

from __future__ import annotations

from contextvars import ContextVar

#: The owner of code that belongs to the worker and not to a call.
WORKER = object()

#: The owner of the running code. Tasks, timers and callbacks inherit it. ``None`` outside the worker's event loop, and
#: for callbacks from other threads.
OWNER: ContextVar[object | None] = ContextVar("snakepit_owner", default=None)

#: The owner for which the event loop runs. ``None`` while the loop does not run.
running: object | None = None
