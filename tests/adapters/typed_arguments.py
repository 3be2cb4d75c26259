"""Tools with typed parameters, for the arguments of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from snakepit_bridge import tool


@tool
def kinds(
    count: int = 0,
    rate: float = 0.0,
    on: bool = False,
    note: str = "",
    level: Literal[1, 2] = 1,
    limit: int | None = None,
    anything: Any = None,
) -> list[str]:
    """Return the arguments as Python shows them."""
    return [repr(value) for value in (count, rate, on, note, level, limit, anything)]


@tool
def reverse(data: bytes) -> bytes:
    """Reverse bytes."""
    return data[::-1]


@tool
def double(array: np.ndarray) -> np.ndarray:
    """Double an array."""
    return array * 2


@tool
def total(items: list[int]) -> int:
    """Add numbers."""
    return sum(items)


@tool
def report(data: bytes) -> dict[str, Any]:
    """Return bytes and an array together with a string."""
    return {"name": "a", "data": data, "sums": [np.zeros(3, dtype="float32")]}


@tool
def parts(data: bytes, size: int) -> Iterator[bytes]:
    """Yield the bytes in parts."""
    for start in range(0, len(data), size):
        yield data[start : start + size]
