"""Tools that leave their worker unable to begin calls, or slow to exit."""

from __future__ import annotations

import gc
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from snakepit_bridge import BaseAdapter, tool

#: Pools that calls leave behind.
_pools: list[ProcessPoolExecutor] = []


def _runner() -> Any:
    return next(found for found in gc.get_objects() if type(found).__name__ == "_CallRunner")


def _close_soon(*descriptors: int) -> None:
    """Close descriptors after the call has ended."""

    def close() -> None:
        time.sleep(0.2)
        for descriptor in descriptors:
            os.close(descriptor)

    threading.Thread(target=close).start()


class Concurrent(BaseAdapter):
    concurrency = 8

    @tool
    async def pid(self) -> int:
        return os.getpid()

    @tool
    async def close_signal(self) -> None:
        """Close the descriptor by which the event loop notices calls."""
        _close_soon(_runner()._calls.fileno())

    @tool
    async def close_wakers(self) -> None:
        """Close all descriptors that wake the event loop."""
        runner = _runner()
        _close_soon(runner._calls.fileno(), runner._loop._ssock.fileno(), runner._loop._csock.fileno())

    @tool
    async def block(self, seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()


class Serial(BaseAdapter):
    @tool
    def pid(self) -> int:
        return os.getpid()

    @tool
    def leave_closing_threads(self) -> int:
        """Leave a thread pool that closes all descriptors after the call."""

        def close() -> None:
            time.sleep(0.1)
            os.closerange(3, 1000)

        ThreadPoolExecutor(2).submit(close)
        return os.getpid()

    @tool
    def leave_busy_pool(self) -> None:
        """Wait for processes that do not end."""
        pool = ProcessPoolExecutor(2)
        _pools.append(pool)
        list(pool.map(time.sleep, [600, 600]))
