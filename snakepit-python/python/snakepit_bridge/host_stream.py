"""Results of host tools that stream."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self

    from snakepit_bridge._call import HostStreamLike


class HostStream:
    """An iterator over the results of a host tool, created by :meth:`SessionContext.stream_host_tool`.

    Works with ``for`` and ``async for``. The first step makes the call. Waiting for a result lets other threads or
    coroutines run. A cancelled coroutine does not lose the result that it waited for. A slow reader stops the tool
    until it continues to read: the host holds at most about 64 KiB of unread results.

    The tool ends when the iterator is closed or dropped, and when the call that created it ends. As a context manager,
    the iterator closes at the end of the block. It raises as :meth:`SessionContext.call_host_tool` does, and ends after
    an exception.
    """

    __slots__ = ("_results",)

    def __init__(self, results: HostStreamLike) -> None:
        self._results = results

    def __iter__(self) -> Self:
        """Return the iterator."""
        return self

    def __next__(self) -> Any:
        """Wait for the next result."""
        result = self._results.next()
        if result is None:
            raise StopIteration
        return result[0]

    def __aiter__(self) -> Self:
        """Return the iterator."""
        return self

    async def __anext__(self) -> Any:
        """Wait for the next result without blocking the event loop."""
        from snakepit_bridge._readiness import until_done

        await until_done(self._results.ready)
        result = self._results.take()
        if result is None:
            raise StopAsyncIteration
        return result[0]

    def close(self) -> None:
        """End the tool. Ends every wait for its next result."""
        self._results.close()

    def __enter__(self) -> Self:
        """Return the iterator."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the tool."""
        self.close()
