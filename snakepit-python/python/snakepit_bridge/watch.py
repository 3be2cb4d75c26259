"""Watches of variables."""

from __future__ import annotations

from snakepit_bridge._iterator import HostIterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from snakepit_bridge._native import VariableUpdate


class Watch(HostIterator):
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

    __slots__ = ()

    if TYPE_CHECKING:

        def __next__(self) -> VariableUpdate:
            """Wait for the next update."""

        async def __anext__(self) -> VariableUpdate:
            """Wait for the next update without blocking the event loop."""
