"""An adapter that prints a readiness line of its own when it is imported."""

from snakepit_bridge import BaseAdapter, tool

print("GRPC_READY:1", flush=True)


class PrematureAdapter(BaseAdapter):
    @tool
    def answer(self) -> int:
        """Answers."""
        return 42
