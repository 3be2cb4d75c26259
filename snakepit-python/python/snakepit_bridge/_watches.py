"""What calls have the event loop wait for, beside their tasks."""

from __future__ import annotations

import contextlib
import contextvars
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
        #: What calls have added.
        self._added: set[tuple[str, Any]] = set()
        #: What the worker has added, which a call may replace.
        self._own: dict[tuple[str, Any], tuple[contextvars.Context, tuple[Any, ...], dict[str, Any]]] = {}
        self._timers: weakref.WeakSet[asyncio.TimerHandle] = weakref.WeakSet()
        for add, remove in _REMOVE.items():
            setattr(loop, add, functools.partial(self._add, add, getattr(loop, add)))
            setattr(loop, remove, functools.partial(self._remove, add, getattr(loop, remove)))
        #: Whether it is of another maker, and does not show its timers.
        self.is_foreign = not hasattr(loop, "_scheduled")
        if self.is_foreign:
            for name in ("call_later", "call_at"):
                setattr(loop, name, functools.partial(self._schedule, getattr(loop, name)))

    def end_call(self) -> None:
        """Remove what is not the worker's. Loops of other makers may have to run meanwhile."""
        while self._added:
            name, key = self._added.pop()
            # The descriptor may be closed, or a transport's by now.
            with contextlib.suppress(Exception):
                getattr(self._loop, _REMOVE[name])(key)
            replaced = self._own.get((name, key))
            if replaced is not None:
                context, args, options = replaced
                context.run(getattr(self._loop, name), *args, **options)
        while self.is_foreign and self._timers:
            self._timers.pop().cancel()

    def _add(self, name: str, add: Callable[..., Any], *args: Any, **options: Any) -> Any:
        added = add(*args, **options)
        key = _key(*args, **options)
        callback = args[1] if len(args) > 1 else options.get("callback")
        if OWNER.get() is WORKER:
            self._added.discard((name, key))
            self._own[name, key] = (contextvars.copy_context(), args, options)
        elif name == "add_signal_handler" or not self._is_of_library(callback):
            self._added.add((name, key))
        return added

    def _remove(self, name: str, remove: Callable[..., Any], *args: Any, **options: Any) -> Any:
        key = _key(*args, **options)
        self._added.discard((name, key))
        if OWNER.get() is WORKER:
            self._own.pop((name, key), None)
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
