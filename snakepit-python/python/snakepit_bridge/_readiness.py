"""Waiting for a file descriptor in a coroutine. Imported where it is used: asyncio is the largest part of a start."""

from __future__ import annotations

import asyncio


async def until_readable(fileno: int) -> None:
    """Wait until a file descriptor is readable, while other coroutines go on."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fileno, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fileno)
