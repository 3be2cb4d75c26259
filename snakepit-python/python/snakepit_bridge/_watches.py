"""What calls have the event loop wait for, beside their tasks."""

from __future__ import annotations

import contextlib
import functools
import sys
import types
import weakref
from typing import TYPE_CHECKING, Any

from snakepit_bridge._owner import OWNER, WORKER

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

#: How to undo what adds a callback.
_REMOVE = {
    "add_reader": "remove_reader",
    "add_writer": "remove_writer",
    "add_signal_handler": "remove_signal_handler",
}


class Watches:
    """Notes what calls add to a loop, and removes it when they end.

    Transports do not come this way, so that connections which calls share stay open.

    Args:
        loop: The loop.
        modules: Names of the modules that the adapter is written in.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, modules: frozenset[str]) -> None:
        self._loop: Any = loop
        self._modules = modules
        #: What calls have added, with the worker's own that it replaced.
        self._added: dict[tuple[str, Any], Any] = {}
        self._timers: weakref.WeakSet[asyncio.TimerHandle] = weakref.WeakSet()
        for add, remove in _REMOVE.items():
            setattr(loop, add, functools.partial(self._add, add, getattr(loop, add)))
            setattr(loop, remove, functools.partial(self._remove, add, getattr(loop, remove)))
        self._is_foreign = not hasattr(loop, "_scheduled")
        if self._is_foreign:
            for name in ("call_later", "call_at"):
                setattr(loop, name, functools.partial(self._schedule, getattr(loop, name)))

    def end_call(self) -> None:
        """Remove what is not the worker's."""
        while self._added:
            (add, key), replaced = self._added.popitem()
            # The descriptor may be closed, or a transport's by now.
            with contextlib.suppress(Exception):
                getattr(self._loop, _REMOVE[add])(key)
            if replaced is not None:
                replaced._context.run(getattr(self._loop, add), key, replaced._callback, *replaced._args)
        while self._is_foreign and self._timers:
            self._timers.pop().cancel()

    def _add(self, name: str, add: Callable[..., Any], *args: Any, **options: Any) -> Any:
        key = _key(*args, **options)
        callback = args[1] if len(args) > 1 else options.get("callback")
        is_signal = name == "add_signal_handler"
        replaced = getattr(self._loop, "_signal_handlers", {}).get(key) if is_signal else None
        added = add(*args, **options)
        noted = self._added.pop((name, key), None)
        if OWNER.get() is not WORKER and (is_signal or not self._is_of_library(callback)):
            is_worker = replaced is not None and replaced._context.get(OWNER) is WORKER
            self._added[name, key] = replaced if is_worker else noted
        return added

    def _remove(self, name: str, remove: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self._added.pop((name, _key(*args, **options)), None)
        return remove(*args, **options)

    def _schedule(self, schedule: Callable[..., Any], *args: Any, **options: Any) -> Any:
        handle = schedule(*args, **options)
        if OWNER.get() is not WORKER:
            self._timers.add(handle)
        return handle

    def _is_of_library(self, callback: Any) -> bool:
        """Whether code of a library waits: for what many calls share, such as the poller of a client."""
        while isinstance(callback, functools.partial):
            callback = callback.func
        if isinstance(callback, types.BuiltinFunctionType):
            return False
        module = getattr(callback, "__module__", None)
        return (
            isinstance(module, str)
            and module not in self._modules
            and module.partition(".")[0] not in (*sys.stdlib_module_names, "__main__")
        )


def _key(*args: Any, **options: Any) -> Any:
    """Find the number of the descriptor or signal among the arguments of what adds or removes a callback."""
    key = args[0] if args else options.get("fd", options.get("sig"))
    fileno = getattr(key, "fileno", None)
    return key if fileno is None else fileno()
