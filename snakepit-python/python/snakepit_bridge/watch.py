"""Updates of variables as they happen."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from snakepit_bridge._call import WatchLike
    from snakepit_bridge._native import VariableUpdate


class Watch:
    """Updates of variables as they happen: :meth:`SessionVariables.watch`.

    An iterator, for ``for`` as for ``async for``, that waits for each update while other threads or coroutines go on.
    It ends when it is closed or its call ends; with ``NotFoundError`` when the session ends, and with ``CallCancelled``
    or ``DeadlineExceededError`` when that ends the call. A client's watch ends with ``ClientClosedError`` when the
    client is closed, with ``ShuttingDownError`` when the host stops, and with ``HostUnavailableError`` when the
    connection breaks. An update that a cancelled coroutine waited for is not lost. As a context manager it closes
    itself.
    """

    __slots__ = ("_updates",)

    def __init__(self, updates: WatchLike) -> None:
        self._updates = updates

    def __iter__(self) -> Self:
        """Return the watch itself."""
        return self

    def __next__(self) -> VariableUpdate:
        """Wait for the next update."""
        update = self._updates.next()
        if update is None:
            raise StopIteration
        return update

    def __aiter__(self) -> Self:
        """Return the watch itself."""
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
        """End the watch, and every wait for its next update."""
        self._updates.close()

    def __enter__(self) -> Self:
        """Return the watch itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the watch."""
        self.close()
