"""Tracks the descriptors, signals and timers that calls add to the event loop."""

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

#: The method that undoes each method that adds a callback.
_REMOVE = {
    "add_reader": "remove_reader",
    "add_writer": "remove_writer",
    "add_signal_handler": "remove_signal_handler",
}


class _WorkerCallback(NamedTuple):
    """A callback that the worker added, and the arguments to add it again."""

    context: contextvars.Context
    args: tuple[Any, ...]
    options: dict[str, Any]
    #: The device and inode of the open file, because the descriptor may be reused for another one.
    file: tuple[int, int] | None


class Watches:
    """Records the callbacks that calls add to a loop, and removes them when the calls end.

    Transports do not use these methods, so connections that calls share stay open.

    Args:
        loop: The loop.
        modules: Names of the modules that define the adapter.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, modules: frozenset[str]) -> None:
        self._loop: Any = loop
        self._modules = modules
        wakeup = getattr(loop, "_ssock", None)
        #: The descriptor by which other threads wake the loop. ``None`` for loops of other implementations.
        self._wakeup: int | None = None if wakeup is None else wakeup.fileno()
        #: Callbacks that calls added, with the owners of the code that added them.
        self._call_callbacks: dict[tuple[str, Any], object | None] = {}
        #: Callbacks that the worker added, and that a call may replace or remove.
        self._worker_callbacks: dict[tuple[str, Any], _WorkerCallback] = {}
        self._timers: weakref.WeakSet[asyncio.TimerHandle] = weakref.WeakSet()
        for add, remove in _REMOVE.items():
            setattr(loop, add, functools.partial(self._add, add, getattr(loop, add)))
            setattr(loop, remove, functools.partial(self._remove, add, getattr(loop, remove)))
        #: Whether the loop is another implementation, which does not show its timers.
        self.is_foreign = not hasattr(loop, "_scheduled")
        if self.is_foreign:
            for name in ("call_later", "call_at"):
                setattr(loop, name, functools.partial(self._schedule, getattr(loop, name)))

    def end_call(self, owner: object | None = None) -> None:
        """Remove the callbacks of all calls, or of one call, and restore those of the worker.

        Loops of other implementations must run for that.
        """
        ended = [place for place, other in self._call_callbacks.items() if owner is None or other is owner]
        for name, key in ended:
            del self._call_callbacks[name, key]
            # The descriptor may have been closed, or reused by a transport.
            with contextlib.suppress(Exception):
                getattr(self._loop, _REMOVE[name])(key)
            worker_callback = self._worker_callbacks.get((name, key))
            if worker_callback is None:
                continue
            if worker_callback.file == _file(name, key):
                worker_callback.context.run(getattr(self._loop, name), *worker_callback.args, **worker_callback.options)
            else:
                del self._worker_callbacks[name, key]
        while self.is_foreign and owner is None and self._timers:
            self._timers.pop().cancel()

    def handles(self) -> set[asyncio.Handle]:
        """Return the handles of all watched descriptors. asyncio's loop runs them again for each event."""
        keys = self._loop._selector.get_map().values()
        return {handle for key in keys for handle in key.data if handle is not None}

    def _add(self, name: str, add: Callable[..., Any], *args: Any, **options: Any) -> Any:
        added = add(*args, **options)
        key = _key(*args, **options)
        callback = _callback(args, options)
        if OWNER.get() is WORKER:
            self._call_callbacks.pop((name, key), None)
            self._worker_callbacks[name, key] = _WorkerCallback(
                contextvars.copy_context(), args, options, _file(name, key)
            )
        elif name == "add_signal_handler" or not self._is_of_library(callback):
            self._call_callbacks[name, key] = OWNER.get()
        else:
            # The library's callback stays. It replaces an earlier callback of a call or of the worker.
            self._call_callbacks.pop((name, key), None)
            self._worker_callbacks.pop((name, key), None)
        return added

    def _remove(self, name: str, remove: Callable[..., Any], *args: Any, **options: Any) -> Any:
        key = _key(*args, **options)
        worker_callback = self._worker_callbacks.get((name, key))
        if OWNER.get() is not WORKER and (
            (name == "add_reader" and key == self._wakeup)
            or (worker_callback is not None and self._is_of_runtime(worker_callback))
        ):
            # Without them, the loop would no longer notice other threads, and the worker would no longer notice calls.
            return False
        self._call_callbacks.pop((name, key), None)
        if worker_callback is not None:
            if OWNER.get() is WORKER or (
                name != "add_signal_handler"
                and self._is_of_library(_callback(worker_callback.args, worker_callback.options))
            ):
                # A library removes its own callbacks when it no longer needs them.
                del self._worker_callbacks[name, key]
            else:
                self._call_callbacks[name, key] = OWNER.get()
        return remove(*args, **options)

    def _schedule(self, schedule: Callable[..., Any], *args: Any, **options: Any) -> Any:
        handle = schedule(*args, **options)
        if OWNER.get() is not WORKER:
            self._timers.add(handle)
        return handle

    @staticmethod
    def _is_of_runtime(worker_callback: _WorkerCallback) -> bool:
        module = getattr(_callback(worker_callback.args, worker_callback.options), "__module__", None)
        return isinstance(module, str) and module.startswith("snakepit_bridge.")

    def _is_of_library(self, callback: Any) -> bool:
        """Return whether a callback belongs to a library.

        It may serve many calls, such as the poller of a client.
        """
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
    """Return the callback from the arguments of a method that adds it."""
    return args[1] if len(args) > 1 else options.get("callback")


def _file(name: str, key: Any) -> tuple[int, int] | None:
    """Return the device and inode of a descriptor. ``None`` for signals and closed descriptors."""
    if name == "add_signal_handler":
        return None
    try:
        status = os.fstat(key)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _key(*args: Any, **options: Any) -> Any:
    """Return the descriptor or signal number from the arguments of a method that adds or removes a callback."""
    key = args[0] if args else options.get("fd", options.get("sig"))
    fileno = getattr(key, "fileno", None)
    return key if fileno is None else fileno()
