"""The backend that writes events to stderr, which the host logs."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from snakepit_bridge.telemetry.backends.base import TelemetryBackend

if TYPE_CHECKING:
    from collections.abc import Mapping


class StderrBackend(TelemetryBackend):
    """Writes each event as a line: ``TELEMETRY:`` and JSON."""

    def emit(
        self,
        event_name: str,
        measurements: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Write an event."""
        event = {
            "event": event_name,
            "measurements": dict(measurements),
            "metadata": dict(metadata or {}),
            "timestamp_ns": time.time_ns(),
            "correlation_id": correlation_id or "",
        }
        # One write, so that other threads cannot divide the line.
        sys.stderr.write(f"TELEMETRY:{json.dumps(event, default=str)}\n")
