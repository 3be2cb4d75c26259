"""The backend that receives the events."""

from __future__ import annotations

from snakepit_bridge import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    class Backend(Protocol):
        """A receiver of events."""

        def emit(
            self,
            event_name: str,
            measurements: Mapping[str, Any],
            metadata: Mapping[str, Any] | None = None,
            correlation_id: str | None = None,
        ) -> None:
            """Receive an event."""


class HostBackend:
    """Sends events to the host. The default backend."""

    def emit(
        self,
        event_name: str,
        measurements: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Queue an event, if the host wants it."""
        _native.emit_event(event_name, measurements, metadata, correlation_id)

    def close(self) -> None:
        """Do nothing: the worker closes its streams."""


_backend: Backend | None = HostBackend()


def set_backend(backend: Backend | None) -> None:
    """Replace the receiver of this process's events. ``None`` drops them."""
    global _backend
    _backend = backend


def get_backend() -> Backend | None:
    """Return the receiver of events, or ``None`` if they are dropped."""
    return _backend


def is_enabled() -> bool:
    """Return whether events have a receiver."""
    return _backend is not None
