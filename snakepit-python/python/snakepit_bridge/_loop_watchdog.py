"""Finds out whether the event loop of a worker still notices calls. See :class:`LoopWatchdog`."""

from __future__ import annotations

import asyncio
import selectors
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable

    from snakepit_bridge._native import ConcurrentCalls

#: The time within which a running loop must notice a call, in seconds.
_NOTICE_WITHIN = 1.0

#: The interval at which a loop that does not notice calls polls for them, in seconds.
_POLL_INTERVAL = 0.02


class LoopWatchdog:
    """Replaces a worker whose event loop runs, but no longer watches the descriptor that signals calls.

    A tool can cause this state, for example by closing descriptors of the loop. The native runtime calls the methods
    after the loop has missed a signal. The watchdog keeps a worker whose loop is only blocked by a tool.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        calls: ConcurrentCalls,
        begin_calls: Callable[[], None],
        context: contextvars.Context,
    ) -> None:
        self._loop = loop
        self._calls = calls
        self._begin_calls = begin_calls
        self._context = context
        self._thread = threading.get_ident()

    def probe(self) -> None:
        """Schedule the probe on the loop. Called on another thread."""
        self._loop.call_soon_threadsafe(self._begin, context=self._context)

    def is_stuck(self) -> bool:
        """Return whether the loop waits although a probe is scheduled. Called on another thread."""
        frame = sys._current_frames().get(self._thread)
        # Other loops do not show whether they wait.
        is_waiting = frame is not None and frame.f_globals is vars(selectors)
        caller = frame.f_back if is_waiting and frame is not None else None
        return caller is not None and caller.f_code is asyncio.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined]

    def _begin(self) -> None:
        self._calls.note_probe()
        noticed = self._calls.noticed()
        self._loop.call_later(_NOTICE_WITHIN, self._confirm, noticed, context=self._context)

    def _confirm(self, noticed: int) -> None:
        # A loop that was blocked runs the callback of the descriptor before its timers.
        if self._calls.noticed() == noticed and self._calls.is_signalled():
            self._calls.retire_unresponsive()
            self._poll()

    def _poll(self) -> None:
        """Serve the running calls until the worker is replaced."""
        self._begin_calls()
        self._loop.call_later(_POLL_INTERVAL, self._poll, context=self._context)
