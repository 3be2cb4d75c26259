"""Tools with long error messages, and tools with empty results.

Each tool has a parameter `pad`. A call with a large `pad` does not use the multiplexed stream to the worker.
"""

import os
from collections.abc import Iterator

import numpy as np

from snakepit_bridge import BaseAdapter, tool


def fail(length: int) -> None:
    """Raises an exception with a message of about this length."""
    raise ValueError("begin " + "x" * length + " end")


class FailingAdapter(BaseAdapter):
    @tool
    def answer(self, pad: str = "") -> int:
        """Returns 42."""
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
        """Prints long lines and exits."""
        for number in range(20):
            print(f"last words {number} " + "y" * 8000, flush=True)
        os._exit(3)

    @tool
    def no_bytes(self, pad: str = "") -> bytes:
        """Returns an empty bytes object."""
        return b""

    @tool
    def no_rows(self, pad: str = "") -> np.ndarray:
        """Returns an array without rows."""
        return np.zeros((0, 3))

    @tool
    def shape_of(self, value: np.ndarray, pad: str = "") -> list[int]:
        """Returns the shape of an array."""
        return list(value.shape)
