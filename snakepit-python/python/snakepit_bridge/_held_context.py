"""Keeps an asynchronous context manager open from the start of a worker to its end."""

from __future__ import annotations

import asyncio
from typing import Any


class HeldContext:
    """Enters and leaves a context manager in one task, as cancel scopes and task groups require.

    Args:
        manager: The context manager.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    async def enter(self) -> Any:
        """Enter the manager. Return its value or raise its exception."""
        loop = asyncio.get_running_loop()
        self._entered: asyncio.Future[Any] = loop.create_future()
        self._leaving = asyncio.Event()
        self._task = loop.create_task(self._hold(), name="lifespan")
        await asyncio.wait({self._entered, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not self._entered.done():
            await self._task
        return self._entered.result()

    async def leave(self) -> None:
        """Leave the manager. Raise its exception, even if it was left before."""
        self._leaving.set()
        await self._task

    async def _hold(self) -> None:
        async with self._manager as value:
            self._entered.set_result(value)
            await self._leaving.wait()
