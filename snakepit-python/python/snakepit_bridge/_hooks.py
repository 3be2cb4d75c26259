"""The trace and profile functions of the thread of the calls, which would see whatever later calls do."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from snakepit_bridge import _native

#: What sets each, and what tells it.
_HOOKS = {"settrace": sys.gettrace, "setprofile": sys.getprofile}


class Hooks:
    """Keeps both as the worker has them.

    Args:
        worker: The native runtime.
    """

    def __init__(self, worker: _native.Worker) -> None:
        self._worker = worker
        self._is_changed = False
        self._plain: dict[str, Callable[[Any], None]] = {name: getattr(sys, name) for name in _HOOKS}
        self._found: dict[str, Any] = {}
        for name in _HOOKS:
            self._watch(name)

    def remember(self) -> None:
        """Take them for those that calls are to find."""
        self._found = {name: get() for name, get in _HOOKS.items()}

    def settle(self) -> None:
        """Put back what a call has changed."""
        if not self._is_changed:
            return
        self._is_changed = False
        for name, get in _HOOKS.items():
            if get() is not self._found[name]:
                self._plain[name](self._found[name])

    def _watch(self, name: str) -> None:
        plain, worker = self._plain[name], self._worker

        def watched(function: Any, /) -> None:
            self._is_changed = True
            worker.unsettle()
            plain(function)

        watched.__name__ = watched.__qualname__ = name
        watched.__doc__ = plain.__doc__
        setattr(sys, name, watched)
