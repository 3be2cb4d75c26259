"""Waits for native tasks in coroutines. Imported on use, because importing asyncio dominates a worker's start."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from snakepit_bridge._native import Completions

if TYPE_CHECKING:
    from collections.abc import Callable

_Started = TypeVar("_Started")


class _Waits:
    """The pending waits of one event loop, which share a descriptor."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Does not store the loop, which references this object: a cycle would keep both alive.
        self.completions = Completions()
        self.futures: dict[int, asyncio.Future[None]] = {}
        self.keys = itertools.count()
        loop.add_reader(self.completions.fileno(), self._wake)

    def _wake(self) -> None:
        for key in self.completions.take():
            future = self.futures.pop(key, None)
            if future is not None and not future.done():
                future.set_result(None)


_waits: WeakKeyDictionary[asyncio.AbstractEventLoop, _Waits] = WeakKeyDictionary()


async def until_done(start: Callable[[Completions, int], _Started]) -> _Started:
    """Start a native task and wait for it without blocking the event loop. Return the started task."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        # Raises a more specific error, such as that of a fork, if there is one.
        start(Completions(), 0)
        raise
    waits = _waits.get(loop)
    if waits is None:
        waits = _waits[loop] = _Waits(loop)
    key = next(waits.keys)
    future = waits.futures[key] = loop.create_future()
    try:
        started = start(waits.completions, key)
        await future
    finally:
        waits.futures.pop(key, None)
    return started
