"""Items of a stream that carry more than their value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StreamChunk:
    """One item of a stream, with metadata beside its value. A tool may as well yield the plain value.

    Args:
        data: The value.
        is_final: Whether the stream ends with this item, whatever the generator would yield after it.
        metadata: What to attach, by name. Values other than strings travel as their JSON.
    """

    data: Any
    is_final: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
