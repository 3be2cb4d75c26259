"""Tasks that live as long as their worker."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine
    from typing import Any, TypeVar

    _T = TypeVar("_T")


def worker_task(coroutine: Coroutine[Any, Any, _T], *, name: str | None = None) -> asyncio.Task[_T]:
    """Start a task that does not end with the call that starts it, but with the worker.

    Tasks that an asynchronous call leaves behind are cancelled when it ends. This one goes on, and so do the tasks that
    it starts in turn: while later coroutines run and between calls, but not while a plain function runs. It has none of
    the call's context variables. For what connects in the background, such as clients and batchers::

        if Shop.client is None:
            Shop.client = await worker_task(connect())

    Args:
        coroutine: What to run.
        name: The name of the task.

    Raises:
        RuntimeError: No event loop runs: it must be called in a coroutine.
    """
    from snakepit_bridge._running_loop import worker_task

    return worker_task(coroutine, name)
