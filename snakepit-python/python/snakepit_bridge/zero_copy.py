"""References to buffers outside of a value, with the names of the original Snakepit. They are opaque."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Self

#: The entries of a payload that are attributes.
_ENTRIES = ("kind", "device", "dtype", "shape", "owner", "ref", "copy", "bytes")


class ZeroCopyRef:
    """A reference to a buffer: an opaque mapping whose entries are attributes. Missing entries are ``None``.

    Args:
        payload: The entries.
    """

    kind: Any
    device: Any
    dtype: Any
    shape: Any
    owner: Any
    ref: Any
    copy: Any
    bytes: Any

    def __init__(self, payload: Mapping[str, Any]) -> None:
        #: All entries.
        self.payload = dict(payload)
        for name in _ENTRIES:
            setattr(self, name, self.payload.get(name))
        #: Additional descriptions of the buffer.
        self.metadata = self.payload.get("metadata", {})

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """Create a reference from its entries."""
        return cls(payload)

    def to_payload(self) -> dict[str, Any]:
        """Return a copy of the entries."""
        return dict(self.payload)

    def __repr__(self) -> str:
        """Return a representation with kind, device and reference."""
        return f"ZeroCopyRef(kind={self.kind!r}, device={self.device!r}, ref={self.ref!r})"
