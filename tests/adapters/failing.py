"""Tools that fail at length, and tools whose results are empty: what must survive the wire.

Each takes a ``pad``: calls with large arguments do not share a stream with others, so it chooses the way to the worker.
"""

import os
from collections.abc import Iterator

import numpy as np

from snakepit_bridge import BaseAdapter, tool


def fail(length: int) -> None:
    """Raise an exception with a message of this length."""
    raise ValueError("begin " + "x" * length + " end")


class FailingAdapter(BaseAdapter):
    @tool
    def answer(self, pad: str = "") -> int:
        """Answers."""
        return 42

    @tool
    def fail_at_length(self, length: int, pad: str = "") -> None:
        """Raises an exception with a long message."""
        fail(length)

    @tool
    def stream_and_fail_at_length(self, length: int, pad: str = "") -> Iterator[int]:
        """Streams one item, then raises an exception with a long message."""
        yield 1
        fail(length)

    @tool
    def die_talking(self, pad: str = "") -> None:
        """Prints long lines and ends the process."""
        for number in range(20):
            print(f"last words {number} " + "y" * 8000, flush=True)
        os._exit(3)

    @tool
    def no_bytes(self, pad: str = "") -> bytes:
        """Returns no bytes at all."""
        return b""

    @tool
    def no_rows(self, pad: str = "") -> np.ndarray:
        """Returns an array without rows."""
        return np.zeros((0, 3))

    @tool
    def shape_of(self, value: np.ndarray, pad: str = "") -> list[int]:
        """Returns the shape of an array, which came as one."""
        return list(value.shape)
