"""The tools that the benchmark calls: as little work as possible, so that the way there and back is measured."""

from collections.abc import Iterator

from snakepit_bridge import BaseAdapter, tool


class BenchAdapter(BaseAdapter):
    @tool(idempotent=True)
    def add(self, a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    @tool(idempotent=True)
    def echo_bytes(self, data: bytes) -> bytes:
        """Returns its argument."""
        return data

    @tool(idempotent=True)
    def chunks(self, n: int) -> Iterator[int]:
        """Counts from 0, a chunk a number."""
        yield from range(n)
