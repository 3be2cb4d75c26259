"""What calls have the event loop wait for, beside their tasks."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import sys
import types
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

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


class _Own(NamedTuple):
    """How the worker added a callback."""

    context: contextvars.Context
    args: tuple[Any, ...]
    options: dict[str, Any]
    #: The open file, for a descriptor's number may come to name another.
    file: tuple[int, int] | None


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
        #: What the worker has added, which a call may replace or remove.
        self._own: dict[tuple[str, Any], _Own] = {}
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
            own = self._own.get((name, key))
            if own is None:
                continue
            if own.file == _file(name, key):
                own.context.run(getattr(self._loop, name), *own.args, **own.options)
            else:
                del self._own[name, key]
        while self.is_foreign and self._timers:
            self._timers.pop().cancel()

    def _add(self, name: str, add: Callable[..., Any], *args: Any, **options: Any) -> Any:
        added = add(*args, **options)
        key = _key(*args, **options)
        callback = _callback(args, options)
        if OWNER.get() is WORKER:
            self._added.discard((name, key))
            self._own[name, key] = _Own(contextvars.copy_context(), args, options, _file(name, key))
        elif name == "add_signal_handler" or not self._is_of_library(callback):
            self._added.add((name, key))
        else:
            # It stays, although an earlier callback for this descriptor was to be removed or put back.
            self._added.discard((name, key))
            self._own.pop((name, key), None)
        return added

    def _remove(self, name: str, remove: Callable[..., Any], *args: Any, **options: Any) -> Any:
        key = _key(*args, **options)
        self._added.discard((name, key))
        own = self._own.get((name, key))
        if own is not None:
            if OWNER.get() is WORKER or (
                name != "add_signal_handler" and self._is_of_library(_callback(own.args, own.options))
            ):
                # A library knows when it need not wait any more.
                del self._own[name, key]
            else:
                self._added.add((name, key))
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


def _callback(args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Find the callback among the arguments of what adds it."""
    return args[1] if len(args) > 1 else options.get("callback")


def _file(name: str, key: Any) -> tuple[int, int] | None:
    """Tell the open file that a descriptor names from others. ``None`` for signals and what is closed."""
    if name == "add_signal_handler":
        return None
    try:
        status = os.fstat(key)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _key(*args: Any, **options: Any) -> Any:
    """Find the number of the descriptor or signal among the arguments of what adds or removes a callback."""
    key = args[0] if args else options.get("fd", options.get("sig"))
    fileno = getattr(key, "fileno", None)
    return key if fileno is None else fileno()
