"""The backend that sends events to the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from snakepit_bridge.telemetry.backends.base import TelemetryBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from snakepit_bridge.telemetry.stream import TelemetryStream


class GrpcBackend(TelemetryBackend):
    """Sends events to the host through a :class:`TelemetryStream`."""

    def __init__(self, stream: TelemetryStream) -> None:
        self._stream = stream

    @property
    def stream(self) -> TelemetryStream:
        """The stream."""
        return self._stream

    def emit(
        self,
        event_name: str,
        measurements: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Queue an event, if the host wants it."""
        self._stream.emit(event_name, measurements, metadata, correlation_id)

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()
