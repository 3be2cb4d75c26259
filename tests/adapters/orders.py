"""The adapter of docs/hints.md."""

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Annotated, Literal

from annotated_types import Ge

from snakepit_bridge import BaseAdapter, tool


@dataclass
class Item:
    name: str
    price: Decimal
    count: Annotated[int, Ge(1)] = 1


class Orders(BaseAdapter):
    @tool
    def total(self, items: list[Item], due: date | None = None, currency: Literal["EUR", "USD"] = "EUR") -> Decimal:
        """Add the prices of all items.

        Args:
            items: The items of one order.
            due: The date of payment.
        """
        del due, currency
        return sum((item.price * item.count for item in items), Decimal(0))
