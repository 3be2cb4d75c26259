"""Results of tools that stream."""

from __future__ import annotations

from snakepit_bridge._iterator import HostIterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class HostStream(HostIterator):
    """An iterator over the results of a tool.

    :meth:`SessionContext.stream_tool` and :meth:`SessionContext.stream_host_tool` create it.

    Works with ``for`` and ``async for``. The first step makes the call. Waiting for a result lets other threads or
    coroutines run. A cancelled coroutine does not lose the result that it waited for. A slow reader stops the tool
    until it continues to read: the host holds at most about 64 KiB of unread results.

    The tool ends when the iterator is closed or dropped, and when the call that created it ends. As a context manager,
    the iterator closes at the end of the block. It raises as :meth:`SessionContext.call_tool` or
    :meth:`SessionContext.call_host_tool` does, and ends after an exception.
    """

    __slots__ = ()

    @staticmethod
    def _unwrap(item: tuple[Any]) -> Any:
        # A result may be `None`, so the source returns tuples.
        return item[0]
