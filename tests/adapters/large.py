"""A tool whose answer is as large as its caller asks for."""

from snakepit_bridge import BaseAdapter, tool


class LargeAdapter(BaseAdapter):
    @tool
    def large(self, size: int) -> bytes:
        """Returns so many zero bytes."""
        return bytes(size)
