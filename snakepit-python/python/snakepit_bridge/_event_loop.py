"""The worker's event loop, created for the first coroutine.

Importing asyncio would dominate a worker's start.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from contextvars import Context
    from types import FrameType
    from typing import Any

    from snakepit_bridge._native import ChunkSink, ConcurrentCall, ConcurrentCalls
    from snakepit_bridge._plan import Plan
    from snakepit_bridge._running_loop import RunningLoop


class EventLoop:
    """Runs awaitables on the thread that runs the tools.

    Args:
        on_worker_task: Called when the loop gets a task that outlives calls. From then on, the loop must run between
            calls.
    """

    def __init__(self, on_worker_task: Callable[[], object] | None = None) -> None:
        self._loop: RunningLoop | None = None
        self._on_worker_task = on_worker_task
        #: Whether the worker runs calls concurrently.
        self.is_concurrent = False
        #: Whether the loop is being created, which must not be interrupted.
        self.is_starting = False
        #: The context of tasks that outlive calls. The default is the context of the first coroutine.
        self.context: Context | None = None
        #: Names of the modules that define the adapter.
        self.modules: frozenset[str] = frozenset()

    def run(self, awaitable: Awaitable[Any], *, keep_tasks: bool = False) -> Any:
        """Run an awaitable to its end. Return its result or raise its exception.

        With ``keep_tasks``, the tasks that it starts live as long as the worker. Otherwise they belong to the call.
        """
        return self._running().run(awaitable, keep_tasks=keep_tasks)

    def end_call(self, may_wait: bool = True) -> bool | None:
        """Cancel the call's tasks and callbacks, and restore the loop's settings.

        Return ``False`` if a task does not end, and ``None`` if waiting is necessary but ``may_wait`` is ``False``.
        """
        return self._loop is None or self._loop.end_call(may_wait)

    def turn(self) -> float | None:
        """Run the ready callbacks. Return the seconds until more work is due.

        Return ``None`` if only the descriptor shows more work.
        """
        return None if self._loop is None else self._loop.turn()

    def fileno(self) -> int:
        """Return the descriptor that is readable when the loop has work. -1 if there is none."""
        return -1 if self._loop is None else self._loop.fileno()

    def interrupt(self, frame: FrameType | None) -> bool | None:
        """Cancel the running task. ``frame`` runs when the signal handler calls this method.

        Return ``False`` if only an exception can interrupt the call: a synchronous function runs, or a coroutine has
        blocked the loop since the last interrupt. Return ``None`` if the loop has not cancelled the task yet, so the
        interrupt must be repeated soon.
        """
        return False if self._loop is None else self._loop.interrupt(frame)

    def serve(self, calls: ConcurrentCalls, plan: Plan) -> None:
        """Run calls concurrently, until their queue is closed and all of them have ended."""
        loop: Any = self._running()
        loop.serve(calls, plan)

    def blocking_call(self, frame: FrameType | None) -> ConcurrentCall | None:
        """Return the cancelled call that blocks the loop of a worker that runs calls concurrently."""
        loop: Any = self._loop
        call: ConcurrentCall | None = None if loop is None else loop.blocking_call(frame)
        return call

    def close(self) -> None:
        """Cancel the remaining tasks and close the loop."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()

    def _running(self) -> RunningLoop:
        loop = self._loop
        if loop is None or loop.is_closed():
            self.is_starting = True
            try:
                loop = self._loop = self._loop_class()(self._on_worker_task, self.context, self.modules)
            except Exception as error:
                from snakepit_bridge._failures import BrokenRuntimeError

                raise BrokenRuntimeError(
                    f"the event loop cannot be created: {type(error).__name__}: {error}"
                ) from error
            finally:
                self.is_starting = False
        return loop

    def _loop_class(self) -> type[RunningLoop]:
        if self.is_concurrent:
            from snakepit_bridge._concurrent import ConcurrentLoop

            return ConcurrentLoop
        from snakepit_bridge._running_loop import RunningLoop

        return RunningLoop


def drain(items: AsyncIterator[Any], sink: ChunkSink) -> Coroutine[Any, Any, None]:
    """Pull an async generator into a sink, until its end or until the reader closes the stream."""
    from snakepit_bridge import _running_loop

    return _running_loop.drain(items, sink)
