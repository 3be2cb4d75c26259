"""The tools of my-project.

`snakepit dev` serves this file and reloads it when it changes.
"""

from collections import Counter
from collections.abc import Iterator

from snakepit_bridge import current_context, tool


@tool
def greet(name: str, times: int = 1) -> str:
    """Greet a person.

    Args:
        name: The person to greet.
        times: How often to repeat the greeting.
    """
    return " ".join([f"Hello, {name}!"] * times)


@tool
def count_words(text: str, minimum: int = 1) -> dict[str, int]:
    """Count the words of a text that occur at least ``minimum`` times."""
    counts = Counter(text.lower().split())
    return {word: count for word, count in counts.items() if count >= minimum}


@tool
def countdown(start: int = 3) -> Iterator[int]:
    """Stream the numbers from ``start`` down to 1."""
    yield from range(start, 0, -1)


@tool
def visit() -> int:
    """Count the visits of the caller's session."""
    context = current_context()
    context["visits"] = context.get("visits", 0) + 1
    return context["visits"]
