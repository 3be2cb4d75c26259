"""A tool with a result of any size."""

from snakepit_bridge import BaseAdapter, tool


class LargeAdapter(BaseAdapter):
    @tool
    def large(self, size: int) -> bytes:
        """Returns `size` zero bytes."""
        return bytes(size)
