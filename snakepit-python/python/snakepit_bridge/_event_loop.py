"""The worker's event loop, made with the first coroutine: asyncio would be the largest part of a worker's start."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Coroutine
    from typing import Any

    from snakepit_bridge._native import ChunkSink
    from snakepit_bridge._running_loop import RunningLoop


class EventLoop:
    """Runs awaitables on the thread that runs the tools."""

    def __init__(self) -> None:
        self._loop: RunningLoop | None = None

    def run(self, awaitable: Awaitable[Any], *, keep_tasks: bool = False) -> Any:
        """Run to the end and return the result, or raise what it raised.

        Tasks that it leaves behind are cancelled, or, with ``keep_tasks``, go on whenever the loop runs.
        """
        if self._loop is None:
            from snakepit_bridge._running_loop import RunningLoop

            self._loop = RunningLoop()
        return self._loop.run(awaitable, keep_tasks=keep_tasks)

    def interrupt(self) -> bool:
        """Cancel what runs; called by a signal handler in the middle of it. ``False``: only raising will help."""
        return self._loop is not None and self._loop.interrupt()

    def close(self) -> None:
        """Cancel what is left and close the loop."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()


def drain(items: AsyncIterator[Any], sink: ChunkSink) -> Coroutine[Any, Any, None]:
    """Pull an async generator into a sink until its end, or until nothing more is wanted."""
    from snakepit_bridge import _running_loop

    return _running_loop.drain(items, sink)
