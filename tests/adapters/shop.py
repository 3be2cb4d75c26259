"""The adapter in the README. `tests/tests/shop.rs` tests it."""

from collections.abc import Iterator

from snakepit_bridge import BaseAdapter, tool


class Shop(BaseAdapter):
    @tool(idempotent=True)
    def price(self, item: str, count: int = 1) -> float:
        """Returns the price of a number of items."""
        return 9.99 * count

    @tool
    async def stock(self, item: str) -> int:
        """Returns the number of items in stock."""
        return len(item)

    @tool
    def receipt(self, items: list[str]) -> Iterator[dict[str, object]]:
        """Streams one line per item."""
        for item in items:
            yield {"item": item, "price": self.price(item)}

    @tool
    def sale(self, item: str) -> float:
        """Returns the price less the host's discount."""
        discount: float = self.session_context.call_host_tool("discount", item=item)
        return self.price(item) * (1 - discount)
