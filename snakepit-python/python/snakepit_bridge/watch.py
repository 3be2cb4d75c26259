"""Watches of variables."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from snakepit_bridge._call import WatchLike
    from snakepit_bridge._native import VariableUpdate


class Watch:
    """An iterator over updates of variables, created by :meth:`SessionVariables.watch`.

    Works with ``for`` and ``async for``. Waiting for an update lets other threads or coroutines run. A cancelled
    coroutine does not lose the update that it waited for. As a context manager, the watch closes at the end of the
    block.

    The iterator ends when the watch is closed or the call of its tool ends. It raises:

    - ``NotFoundError`` when the session ends
    - ``CallCancelled`` or ``DeadlineExceededError`` when that ends the call
    - ``ClientClosedError`` when the client is closed
    - ``ShuttingDownError`` when the host shuts down
    - ``HostUnavailableError`` when the client's connection breaks
    """

    __slots__ = ("_updates",)

    def __init__(self, updates: WatchLike) -> None:
        self._updates = updates

    def __iter__(self) -> Self:
        """Return the watch."""
        return self

    def __next__(self) -> VariableUpdate:
        """Wait for the next update."""
        update = self._updates.next()
        if update is None:
            raise StopIteration
        return update

    def __aiter__(self) -> Self:
        """Return the watch."""
        return self

    async def __anext__(self) -> VariableUpdate:
        """Wait for the next update without blocking the event loop."""
        from snakepit_bridge._readiness import until_done

        await until_done(self._updates.ready)
        update = self._updates.take()
        if update is None:
            raise StopAsyncIteration
        return update

    def close(self) -> None:
        """Close the watch. Ends every wait for its next update."""
        self._updates.close()

    def __enter__(self) -> Self:
        """Return the watch."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the watch."""
        self.close()
