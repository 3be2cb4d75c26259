"""Receivers of events, for :func:`snakepit_bridge.telemetry.set_backend`."""

from snakepit_bridge.telemetry.backends.base import TelemetryBackend

__all__ = ["TelemetryBackend"]
