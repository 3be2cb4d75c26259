"""Tools for clients whose host, network or worker fails them."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from snakepit_bridge import BaseAdapter, tool


class UnluckyTools(BaseAdapter):
    @tool
    def add(self, a: int, b: int) -> int:
        """Adds."""
        return a + b

    @tool
    def length(self, data: bytes) -> int:
        """Counts bytes."""
        return len(data)

    @tool
    def count(self, n: int, pause: float = 0) -> Iterator[int]:
        """Counts, with a pause before each number."""
        for i in range(n):
            time.sleep(pause)
            yield i

    @tool
    def sleep(self, seconds: float, path: str = "") -> str:
        """Sleeps, after a file at the path says that it does."""
        if path:
            Path(path).touch()
        time.sleep(seconds)
        return "slept"

    @tool
    def append(self, path: str) -> int:
        """Adds a line to a file, and returns how many there are."""
        with Path(path).open("a") as file:
            file.write("ran\n")
        return len(Path(path).read_text().splitlines())

    @tool
    def crash(self) -> None:
        """Ends its process."""
        os._exit(7)

    @tool
    def fail(self) -> None:
        """Raises what cannot be printed."""
        raise ValueError("caf\udce9")
