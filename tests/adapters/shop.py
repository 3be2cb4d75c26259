"""The adapter of the README, and of `tests/tests/shop.rs`."""

from collections.abc import Iterator

from snakepit_bridge import BaseAdapter, tool


class Shop(BaseAdapter):
    @tool(idempotent=True)
    def price(self, item: str, count: int = 1) -> float:
        """What so many of an item cost."""
        return 9.99 * count

    @tool
    async def stock(self, item: str) -> int:
        """How many there are."""
        return len(item)

    @tool
    def receipt(self, items: list[str]) -> Iterator[dict[str, object]]:
        """One line an item, as they come."""
        for item in items:
            yield {"item": item, "price": self.price(item)}

    @tool
    def sale(self, item: str) -> float:
        """The price, less the discount that the host knows."""
        discount: float = self.session_context.call_host_tool("discount", item=item)
        return self.price(item) * (1 - discount)
