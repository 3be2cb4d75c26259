"""Whose code runs on the thread of the calls: that of the call, of an earlier one, or of the worker itself."""

from __future__ import annotations

from contextvars import ContextVar

#: The owner of code that belongs to the worker and to no call.
WORKER = object()

#: Who started the code that runs. Tasks, timers and callbacks inherit it. ``None`` outside of the worker's event loop,
#: and for what other threads put into it.
OWNER: ContextVar[object | None] = ContextVar("snakepit_owner", default=None)

#: Who runs the event loop now; ``None`` while it does not run.
running: object | None = None
