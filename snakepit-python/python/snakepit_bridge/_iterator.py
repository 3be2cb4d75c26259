"""The base class of iterators over items that the host sends."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from snakepit_bridge._call import HostStreamLike, WatchLike


class HostIterator:
    """An iterator for ``for`` and ``async for``, which closes at the end of a ``with`` or ``async with`` block.

    Subclasses narrow the type of the items.
    """

    __slots__ = ("_source",)

    def __init__(self, source: HostStreamLike | WatchLike) -> None:
        self._source = source

    @staticmethod
    def _unwrap(item: Any) -> Any:
        """Return the item of the iterator for an item of the source, which is never ``None``."""
        return item

    def __iter__(self) -> Self:
        """Return the iterator."""
        return self

    def __next__(self) -> Any:
        """Wait for the next item."""
        item = self._source.next()
        if item is None:
            raise StopIteration
        return self._unwrap(item)

    def __aiter__(self) -> Self:
        """Return the iterator."""
        return self

    async def __anext__(self) -> Any:
        """Wait for the next item without blocking the event loop."""
        from snakepit_bridge._readiness import until_done

        await until_done(self._source.ready)
        item = self._source.take()
        if item is None:
            raise StopAsyncIteration
        return self._unwrap(item)

    def close(self) -> None:
        """Close the iterator. Ends every wait for its next item."""
        self._source.close()

    async def aclose(self) -> None:
        """Close the iterator, as ``close`` does, for ``contextlib.aclosing``. It does not wait."""
        self.close()

    def __enter__(self) -> Self:
        """Return the iterator."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the iterator."""
        self.close()

    async def __aenter__(self) -> Self:
        """Return the iterator."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the iterator."""
        self.close()
