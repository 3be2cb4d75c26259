"""The worker's event loop, made with the first coroutine: asyncio would be the largest part of a worker's start."""

from __future__ import annotations

from snakepit_bridge._failures import BrokenRuntimeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from contextvars import Context
    from typing import Any

    from snakepit_bridge._native import ChunkSink
    from snakepit_bridge._running_loop import RunningLoop


class EventLoop:
    """Runs awaitables on the thread that runs the tools.

    Args:
        on_worker_task: Called when the loop gets a task that outlives calls, so that it must run between them.
    """

    def __init__(self, on_worker_task: Callable[[], object] | None = None) -> None:
        self._loop: RunningLoop | None = None
        self._on_worker_task = on_worker_task
        #: Whether the loop is being made, which must not be cut.
        self.is_starting = False
        #: The context of tasks that outlive calls; by default that of the first coroutine.
        self.context: Context | None = None
        #: Names of the modules that the adapter is written in.
        self.modules: frozenset[str] = frozenset()

    def run(self, awaitable: Awaitable[Any], *, keep_tasks: bool = False) -> Any:
        """Run to the end and return the result, or raise what it raised.

        It belongs to a call, unless ``keep_tasks`` is set: then its tasks live as long as the worker.
        """
        return self._running().run(awaitable, keep_tasks=keep_tasks)

    def end_call(self, may_wait: bool = True) -> bool | None:
        """Undo what the call did to the loop, and end its tasks and callbacks.

        Returns ``False`` if one of the tasks does not end; ``None`` if that takes waiting, which it then may not.
        """
        return self._loop is None or self._loop.end_call(may_wait)

    def turn(self) -> float | None:
        """Run what is ready. Returns after how many seconds there will be more; ``None`` if only a descriptor tells."""
        return None if self._loop is None else self._loop.turn()

    def fileno(self) -> int:
        """Return the descriptor that is readable when the loop has something to do; -1 if there is none."""
        return -1 if self._loop is None else self._loop.fileno()

    def interrupt(self) -> bool:
        """Cancel what runs; called by a signal handler in the middle of it. ``False``: only raising will help."""
        return self._loop is not None and self._loop.interrupt()

    def close(self) -> None:
        """Cancel what is left and close the loop."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()

    def _running(self) -> RunningLoop:
        loop = self._loop
        if loop is None or loop.is_closed():
            self.is_starting = True
            try:
                from snakepit_bridge._running_loop import RunningLoop

                loop = self._loop = RunningLoop(self._on_worker_task, self.context, self.modules)
            except Exception as error:
                raise BrokenRuntimeError(f"no event loop can be made: {type(error).__name__}: {error}") from error
            finally:
                self.is_starting = False
        return loop


def drain(items: AsyncIterator[Any], sink: ChunkSink) -> Coroutine[Any, Any, None]:
    """Pull an async generator into a sink until its end, or until nothing more is wanted."""
    from snakepit_bridge import _running_loop

    return _running_loop.drain(items, sink)
