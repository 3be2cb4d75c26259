"""A tool with a result of any size."""

from snakepit_bridge import BaseAdapter, tool


class LargeAdapter(BaseAdapter):
    @tool
    def large(self, size: int) -> bytes:
        """Returns `size` zero bytes."""
        return bytes(size)

    @tool
    def nested(self, size: int) -> list[bytes]:
        """Returns a list with `size` bytes, in parts of a mebibyte."""
        return [bytes(1 << 20)] * (size >> 20)
