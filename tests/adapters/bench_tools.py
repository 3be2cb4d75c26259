"""The tools of the benchmark. They do as little as possible, so the benchmark measures the path of the call."""

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
        """Streams the numbers from 0 to n - 1."""
        yield from range(n)
