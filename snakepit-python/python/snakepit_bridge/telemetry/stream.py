"""The queue of events for the host."""

from __future__ import annotations

from snakepit_bridge import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class TelemetryStream:
    """A filter and counter in front of the worker's queue of events.

    The worker serves the stream to the host itself, so this class has no method for it.

    Args:
        max_buffer: Accepted and ignored. The worker limits the queue to 1024 events for each stream.
    """

    def __init__(self, max_buffer: int = 1024) -> None:
        del max_buffer
        #: Whether events are sent.
        self.enabled = True
        #: The share of events that are sent, from 0 to 1.
        self.sampling_rate = 1.0
        self._is_closed = False

    def emit(
        self,
        event_name: str,
        measurements: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Queue an event, if the host wants it."""
        if not self.enabled or self._is_closed:
            return
        if self.sampling_rate < 1.0:
            from random import random

            if random() >= self.sampling_rate:  # noqa: S311  Not a secret.
                return
        _native.emit_event(event_name, measurements, metadata, correlation_id)

    @property
    def dropped_count(self) -> int:
        """The number of events that this worker dropped because a queue was full."""
        return _native.dropped_events()

    def close(self) -> None:
        """Drop further events."""
        self._is_closed = True
