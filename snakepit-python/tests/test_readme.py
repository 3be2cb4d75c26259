"""The tests in the README."""

from __future__ import annotations

from shop import Shop
from snakepit_bridge.testing import call_tool, stream_tool


def test_price() -> None:
    assert call_tool(Shop, "price", item="tea", count=2) == 19.98


def test_receipt() -> None:
    assert len(stream_tool(Shop, "receipt", items=["tea", "milk"])) == 2


def test_sale() -> None:
    def discount(item: str) -> float:
        return 0.5 if item == "tea" else 0.0

    assert call_tool(Shop, "sale", item="tea", host_tools={"discount": discount}) == 9.99 / 2
