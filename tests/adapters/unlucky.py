"""Tools for tests of clients with faults of the host, the network or a worker."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from snakepit_bridge import BaseAdapter, tool


class UnluckyTools(BaseAdapter):
    @tool
    def add(self, a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    @tool
    def length(self, data: bytes) -> int:
        """Returns the number of bytes."""
        return len(data)

    @tool
    def count(self, n: int, pause: float = 0) -> Iterator[int]:
        """Streams numbers, with a pause before each."""
        for i in range(n):
            time.sleep(pause)
            yield i

    @tool
    def burst(self, n: int, path: str) -> Iterator[int]:
        """Streams numbers without a pause, and one more once a file exists at the path."""
        yield from range(n)
        for _ in range(30_000):
            if Path(path).exists():
                break
            time.sleep(0.001)
        yield n

    @tool
    def sleep(self, seconds: float, path: str = "") -> str:
        """Creates a file at the path, and then sleeps."""
        if path:
            Path(path).touch()
        time.sleep(seconds)
        return "slept"

    @tool
    def append(self, path: str) -> int:
        """Appends a line to a file, and returns the number of lines."""
        with Path(path).open("a") as file:
            file.write("ran\n")
        return len(Path(path).read_text().splitlines())

    @tool
    def crash(self) -> None:
        """Exits without cleanup."""
        os._exit(7)

    @tool
    def fail(self) -> None:
        """Raises an exception whose message cannot be encoded as UTF-8."""
        raise ValueError("caf\udce9")
