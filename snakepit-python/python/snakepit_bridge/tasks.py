"""Background tasks of a worker."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine
    from typing import Any, TypeVar

    _T = TypeVar("_T")


def worker_task(coroutine: Coroutine[Any, Any, _T], *, name: str | None = None) -> asyncio.Task[_T]:
    """Start a task that lives as long as the worker, not only as long as the call that starts it.

    When an asynchronous call ends, the worker cancels the tasks that the call started. It cancels neither a worker task
    nor the tasks that a worker task starts. A worker task runs between calls and while later coroutines run, but not
    while a synchronous function runs. It has none of the call's context variables. Use a worker task for background
    work, such as the connection of a client::

        if Shop.client is None:
            Shop.client = await worker_task(connect())

    Args:
        coroutine: The coroutine to run.
        name: The name of the task.

    Raises:
        RuntimeError: No event loop is running. Call it in a coroutine.
    """
    from snakepit_bridge._running_loop import worker_task

    return worker_task(coroutine, name)
