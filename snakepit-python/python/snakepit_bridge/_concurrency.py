"""The numbers of calls that a worker runs concurrently."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from snakepit_bridge._plan import ToolPlan

#: The maximum number of calls and of threads.
MAX_CALLS = 256


class Concurrency:
    """The numbers of a worker that sets any of them.

    Args:
        adapter: The adapter class.
        tools: Its tools.
        pool_calls: The setting of the pool. It replaces the attribute ``concurrency``, and limits all calls of a worker
            together, including those in threads.
        pool_threads: The setting of the host, which replaces the attribute ``threads``.

    Raises:
        TypeError: A number is invalid, or the calls to a tool cannot overlap.
    """

    def __init__(
        self, adapter: type, tools: Iterable[ToolPlan], pool_calls: int | None = None, pool_threads: int | None = None
    ) -> None:
        calls, threads = _attribute(adapter, "concurrency", 1), _attribute(adapter, "threads", 0)
        own = {tool.spec["name"]: tool for tool in tools if tool.concurrency is not None}
        for name, tool in own.items():
            if tool.is_plain and tool.concurrency != 1 and not threads and pool_threads is None:
                raise TypeError(
                    f"tool `{name}` sets concurrency={tool.concurrency}, but it is a synchronous function, whose "
                    "calls overlap only in threads; make it `async def`, or set `threads` in the adapter"
                )
        limits = [tool.concurrency or 1 for tool in own.values()]
        #: The limit of coroutines whose tools set none.
        self.shared = calls if pool_calls is None else pool_calls
        #: The number of threads for synchronous functions. With 0, they run on the event loop.
        self.threads = threads if pool_threads is None else pool_threads
        #: The number of calls that the worker runs together.
        self.calls = max(self.shared, self.threads, *limits) if pool_calls is None else pool_calls
        # A worker that runs one call at a time runs synchronous functions on the main thread.
        self.threads = min(self.threads, self.calls) if self.calls > 1 else 0


def check(name: str, value: object, least: int = 1) -> int:
    """Return a number of calls or threads.

    Raises:
        ValueError: It is not an integer in the range.
    """
    if type(value) is not int or not least <= value <= MAX_CALLS:
        raise ValueError(f"{name} is {value!r}; it takes an integer from {least} to {MAX_CALLS}")
    return value


def _attribute(adapter: Any, name: str, least: int) -> int:
    """Return the number that an adapter sets, or the least one."""
    value = getattr(adapter, name, None)
    # A tool may have this name.
    if value is None or callable(value):
        return least
    try:
        return check(f"`{name}`", value, least)
    except ValueError as error:
        raise TypeError(str(error)) from None
