"""Tools for the soak: each call leaves a mark, so that calls which ran twice or not at all can be counted."""

import asyncio
import collections
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from snakepit_bridge import BaseAdapter, tool

# One file per worker process; a single `write` with O_APPEND survives a SIGKILL that follows it.
_marks = os.open(
    Path(os.environ["SNAKEPIT_SOAK_MARKS"]) / f"{os.getpid()}-{time.time_ns()}",
    os.O_WRONLY | os.O_CREAT | os.O_APPEND,
)


def answer(nonce: int) -> int:
    """The answer to a nonce; the load generator computes the same."""
    return nonce * 31 + 7


class SoakTools(BaseAdapter):
    @tool
    def mark(self, nonce: int, millis: int = 0) -> int:
        """Records the nonce, works for a while, then answers it."""
        os.write(_marks, b"%d\n" % nonce)
        if millis:
            time.sleep(millis / 1000)
        return answer(nonce)

    @tool
    async def mark_async(self, nonce: int, millis: int = 0) -> int:
        """Does the same in a coroutine."""
        os.write(_marks, b"%d\n" % nonce)
        if millis:
            await asyncio.sleep(millis / 1000)
        return answer(nonce)

    @tool
    def numbers(self, nonce: int, n: int) -> Iterator[int]:
        """Streams consecutive numbers from the answer on."""
        first = answer(nonce)
        yield from range(first, first + n)

    @tool
    async def numbers_async(self, nonce: int, n: int) -> AsyncIterator[int]:
        """Streams the same from an async generator."""
        first = answer(nonce)
        for number in range(first, first + n):
            yield number

    @tool
    def crash(self) -> None:
        """Aborts the process."""
        os.abort()

    @tool
    def hang(self) -> None:
        """Stays in C code that neither releases the GIL nor checks for signals."""
        collections.deque(itertools.repeat(None), maxlen=0)

    @tool
    def flood(self, lines: int, characters: int) -> int:
        """Prints many lines, then one very long line without an end."""
        for number in range(lines):
            print(f"flood line {number}")
        print("x" * characters, end="", flush=True)
        return lines

    @tool
    def nap(self, seconds: float) -> None:
        """Blocks, but can be interrupted."""
        time.sleep(seconds)
