"""The base class of event receivers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class TelemetryBackend(ABC):
    """A receiver of events."""

    @abstractmethod
    def emit(
        self,
        event_name: str,
        measurements: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Receive an event. The thread that emits it calls this method."""

    def close(self) -> None:  # noqa: B027  Optional.
        """Release the resources of the backend."""
