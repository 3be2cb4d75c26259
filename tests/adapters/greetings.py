"""The module of docs/adapters.md, whose functions are tools."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from snakepit_bridge import current_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def lifespan(greeting: str = "Hello") -> AsyncIterator[dict[str, object]]:
    yield {"greeting": greeting}


def greet(name: str) -> str:
    """Greet a person."""
    return f"{current_context().process.greeting}, {name}!"


async def visit(name: str) -> int:
    """Count the visits of this session."""
    context = current_context()
    context.get("visits") or context.register_variable("visits", "integer", 0)
    context.update("visits", lambda visits: visits + 1)
    return int(context["visits"])


def _shout(text: str) -> str:
    return text.upper()
