"""Tools of the soak test. `mark` and `mark_async` write their nonce to a file, which shows how often each call ran."""

import asyncio
import collections
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from snakepit_bridge import BaseAdapter, tool

# One file per worker process. A `write` with O_APPEND is complete even if a SIGKILL follows.
_marks = os.open(
    Path(os.environ["SNAKEPIT_TEST_SOAK_MARKS"]) / f"{os.getpid()}-{time.time_ns()}",
    os.O_WRONLY | os.O_CREAT | os.O_APPEND,
)


_tasks: list[asyncio.Future[None]] = []


async def _block_when_cancelled() -> None:
    try:
        await asyncio.sleep(600)
    finally:
        time.sleep(600)


def result_of(nonce: int) -> int:
    """Computes the result for a nonce, which callers check."""
    return nonce * 31 + 7


class SoakTools(BaseAdapter):
    @tool
    def mark(self, nonce: int, millis: int = 0) -> int:
        """Writes the nonce, works for a while, and returns the result."""
        os.write(_marks, b"%d\n" % nonce)
        if millis:
            time.sleep(millis / 1000)
        return result_of(nonce)

    @tool
    async def mark_async(self, nonce: int, millis: int = 0) -> int:
        """Does the same as `mark` in a coroutine."""
        os.write(_marks, b"%d\n" % nonce)
        if millis:
            await asyncio.sleep(millis / 1000)
        return result_of(nonce)

    @tool
    def numbers(self, nonce: int, n: int) -> Iterator[int]:
        """Streams consecutive numbers, starting with the result for the nonce."""
        first = result_of(nonce)
        yield from range(first, first + n)

    @tool
    async def numbers_async(self, nonce: int, n: int) -> AsyncIterator[int]:
        """Does the same as `numbers` in an async generator."""
        first = result_of(nonce)
        for number in range(first, first + n):
            yield number

    @tool
    def crash(self) -> None:
        """Aborts the process."""
        os.abort()

    @tool
    def hang(self) -> None:
        """Hangs in C code that neither releases the GIL nor checks for signals."""
        collections.deque(itertools.repeat(None), maxlen=0)

    @tool
    def flood(self, lines: int, characters: int) -> int:
        """Prints many lines, then a very long line without a newline."""
        for number in range(lines):
            print(f"flood line {number}")
        print("x" * characters, end="", flush=True)
        return lines

    @tool
    def nap(self, seconds: float) -> None:
        """Blocks in a system call that can be interrupted."""
        time.sleep(seconds)

    @tool
    async def leave_blocking_task(self) -> int:
        """Leaves a task that blocks the event loop when it is cancelled. Returns the pid."""
        _tasks.append(asyncio.ensure_future(_block_when_cancelled()))
        await asyncio.sleep(0)
        return os.getpid()
