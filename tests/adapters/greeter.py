"""A program that serves its own adapter, for docs/installation.md."""

from snakepit_bridge import BaseAdapter, serve, tool


class Greeter(BaseAdapter):
    @tool
    def greet(self, name: str) -> str:
        return f"Hello, {name}!"


if __name__ == "__main__":
    serve(Greeter, workers=2)
