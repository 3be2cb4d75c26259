"""The event loop behind :class:`EventLoop`, once there is a coroutine to run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from snakepit_bridge._native import ChunkSink


class RunningLoop:
    """Runs awaitables of one call at a time, each of which leaves nothing behind."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._task: asyncio.Future[Any] | None = None
        self._asked = False
        self._heard = False
        #: Tasks that outlive calls, because `process_init` started them.
        self._residents: set[asyncio.Task[Any]] = set()

    def run(self, awaitable: Awaitable[Any], *, keep_tasks: bool = False) -> Any:
        """See :meth:`EventLoop.run`."""
        loop = self._loop
        task = asyncio.ensure_future(awaitable, loop=loop)
        self._asked = self._heard = False
        self._task = task
        try:
            self._run_until_done(loop, task)
        except BaseException:
            # Something broke out of the loop: SystemExit does, and a call that was interrupted in a callback. If the
            # task ended with it, the task knows better; else it must not go on with the next call.
            if not task.done():
                task.cancel()
                self._run_until_done(loop, task)
                raise
        finally:
            self._task = None
            if keep_tasks:
                self._residents |= asyncio.all_tasks(loop)
            else:
                self._cancel_leftovers(loop)
        return task.result()

    def interrupt(self) -> bool:
        """See :meth:`EventLoop.interrupt`."""
        task = self._task
        if task is None or task.done():
            return False
        if not self._asked:
            self._asked = True
            self._loop.call_soon_threadsafe(self._cancel, task)
            return True
        # The loop did not come around to the cancellation: the coroutine blocks it, so only raising ends that.
        return self._heard

    def close(self) -> None:
        """Cancel what is left and close the loop."""
        self._residents = set()
        self._cancel_leftovers(self._loop)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def _cancel(self, task: asyncio.Future[Any]) -> None:
        self._heard = True
        task.cancel()

    @staticmethod
    def _run_until_done(loop: asyncio.AbstractEventLoop, task: asyncio.Future[Any]) -> None:
        def stop(_: object) -> None:
            loop.stop()

        # `run_until_complete` would do, but for the frames that it adds to the traceback of a failure.
        task.add_done_callback(stop)
        try:
            loop.run_forever()
        finally:
            task.remove_done_callback(stop)

    def _cancel_leftovers(self, loop: asyncio.AbstractEventLoop) -> None:
        leftovers = asyncio.all_tasks(loop) - self._residents
        if leftovers:
            for task in leftovers:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*leftovers, return_exceptions=True))


async def drain(items: AsyncIterator[Any], sink: ChunkSink) -> None:
    """Pull an async generator into a sink until its end, or until nothing more is wanted."""
    async for item in items:
        put = sink.put(item)
        if put is None:
            return
        if not put:
            loop = asyncio.get_running_loop()
            # A thread waits, so that the loop goes on and hears a cancellation.
            if not await loop.run_in_executor(None, sink.space().wait):
                return
