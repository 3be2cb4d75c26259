"""Restores the trace and profile functions of the main thread, which would otherwise also observe later calls."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from snakepit_bridge import _native

#: The functions of `sys` that set each hook, and those that return it.
_HOOKS = {"settrace": sys.gettrace, "setprofile": sys.getprofile}


class Hooks:
    """Restores both hooks after each call.

    Args:
        worker: The native runtime.
    """

    def __init__(self, worker: _native.Worker) -> None:
        self._worker = worker
        self._is_changed = False
        self._original: dict[str, Callable[[Any], None]] = {name: getattr(sys, name) for name in _HOOKS}
        self._baseline: dict[str, Any] = {}
        for name in _HOOKS:
            self._watch(name)

    def remember(self) -> None:
        """Record the current hooks as those to restore after calls."""
        self._baseline = {name: get() for name, get in _HOOKS.items()}

    def restore(self) -> None:
        """Restore the hooks that a call changed."""
        if not self._is_changed:
            return
        self._is_changed = False
        for name, get in _HOOKS.items():
            if get() is not self._baseline[name]:
                self._original[name](self._baseline[name])

    def _watch(self, name: str) -> None:
        plain, worker = self._original[name], self._worker

        def watched(function: Any, /) -> None:
            self._is_changed = True
            worker.request_restore()
            plain(function)

        watched.__name__ = watched.__qualname__ = name
        watched.__doc__ = plain.__doc__
        setattr(sys, name, watched)
