"""Items of a stream with metadata."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class StreamChunk:
    """One item of a stream with metadata. Tools without metadata yield plain values.

    >>> yield StreamChunk("half", metadata={"progress": 0.5})  # doctest: +SKIP

    Args:
        data: The value.
        is_final: Whether the stream ends with this item, even if the generator would yield more.
        metadata: Metadata by name. Values other than strings are sent as JSON.
    """

    __slots__ = ("__weakref__", "data", "is_final", "metadata")
    __match_args__ = ("data", "is_final", "metadata")

    def __init__(self, data: Any, is_final: bool = False, metadata: Mapping[str, Any] | None = None) -> None:
        #: The value.
        self.data = data
        #: Whether the stream ends with this item.
        self.is_final = is_final
        #: The metadata by name.
        self.metadata: Mapping[str, Any] = {} if metadata is None else metadata

    def __eq__(self, other: object) -> bool:
        """Return whether the other object is a chunk with equal parts."""
        if not isinstance(other, StreamChunk):
            return NotImplemented
        mine = (self.data, self.is_final, self.metadata)
        return mine == (other.data, other.is_final, other.metadata)

    def __repr__(self) -> str:
        """Return a representation with all parts."""
        name = type(self).__name__
        return f"{name}(data={self.data!r}, is_final={self.is_final!r}, metadata={self.metadata!r})"
