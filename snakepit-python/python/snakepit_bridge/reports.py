"""The reports of a running call: its progress and its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Literal


@dataclass(frozen=True)
class Progress:
    """The progress of a call, as its tool reported it."""

    #: The work that is done.
    done: float
    #: The whole work, if the tool knows it.
    total: float | None = None
    #: A human-readable message.
    message: str = ""

    @property
    def fraction(self) -> float | None:
        """The part of the work that is done, from 0 to 1. ``None`` without a total."""
        if not self.total:
            return None
        return min(max(self.done / self.total, 0.0), 1.0)


@dataclass(frozen=True)
class LogLine:
    """A line of a call's output."""

    #: The line, without its end. Control characters are escaped.
    text: str
    #: The stream of the worker.
    stream: Literal["stdout", "stderr"]
    #: The level of a :mod:`logging` record. 0 for other output.
    level: int
    #: The name of the logger. Empty for other output.
    logger: str
    #: The time at which the host received the line, in UTC.
    time: datetime
