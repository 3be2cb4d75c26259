"""An adapter that prints a line like the readiness line during its import."""

from snakepit_bridge import BaseAdapter, tool

print("GRPC_READY:1", flush=True)


class PrematureAdapter(BaseAdapter):
    @tool
    def answer(self) -> int:
        """Returns 42."""
        return 42
