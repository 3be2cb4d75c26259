"""Telemetry of tools: events that reach the host, and ids that correlate them.

>>> from snakepit_bridge import telemetry
>>> telemetry.emit("model.cache", {"hits": 3}, {"model": "small"})  # doctest: +SKIP
>>> with telemetry.span("model.load", {"model": "small"}):  # doctest: +SKIP
...     load()

The host receives an event only while it has subscribers whose settings accept it. Otherwise, :func:`emit` costs less
than a microsecond. Events wait in a bounded queue. If it is full, further events are dropped and counted.
"""

from __future__ import annotations

from snakepit_bridge.telemetry._correlation import (
    CORRELATION_HEADER,
    correlation_filter,
    get_correlation_id,
    new_correlation_id,
    outgoing_metadata,
    reset_correlation_id,
    set_correlation_id,
)
from snakepit_bridge.telemetry._span import OtelSpan, Span
from snakepit_bridge.telemetry.manager import get_backend, is_enabled, set_backend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

__all__ = [
    "CORRELATION_HEADER",
    "correlation_filter",
    "emit",
    "get_backend",
    "get_correlation_id",
    "get_tracer",
    "is_enabled",
    "new_correlation_id",
    "otel_span",
    "outgoing_metadata",
    "reset_correlation_id",
    "set_backend",
    "set_correlation_id",
    "setup_tracing",
    "span",
]


def emit(
    event: str,
    measurements: Mapping[str, float | str],
    metadata: Mapping[str, Any] | None = None,
    correlation_id: str | None = None,
) -> None:
    """Emit an event.

    Args:
        event: The name, with dots: ``model.cache``.
        measurements: Numbers by name. Texts are possible, too.
        metadata: Additional descriptions. Values become strings.
        correlation_id: The id that links events. The default is :func:`get_correlation_id`.
    """
    backend = get_backend()
    if backend is not None:
        backend.emit(event, measurements, metadata, correlation_id or get_correlation_id())


def span(operation: str, metadata: Mapping[str, Any] | None = None, correlation_id: str | None = None) -> Span:
    """Return a context manager that emits events around a block. As a decorator, the block is the function.

    The events are ``OPERATION.start`` with ``system_time``, then ``OPERATION.stop`` with ``duration``, or
    ``OPERATION.exception`` with ``duration`` and the metadata ``error_type`` and ``error_message``. Both are in
    nanoseconds.

    Args:
        operation: The beginning of the names of the events.
        metadata: The metadata of all events.
        correlation_id: As for :func:`emit`.
    """
    return Span(emit, operation, metadata, correlation_id)


def otel_span(
    name: str,
    *,
    context_metadata: Iterable[tuple[str, str]] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> OtelSpan:
    """Return a context manager that sets the correlation id for a block, in a span of OpenTelemetry.

    It yields the span, or ``None`` without :func:`setup_tracing` or the package opentelemetry.

    Args:
        name: The name of the span.
        context_metadata: Headers. The id is that of the header :data:`CORRELATION_HEADER`, if it is present. Otherwise
            the current id applies, or a new one.
        attributes: Attributes of the span.
    """
    return OtelSpan(get_tracer, name, context_metadata, attributes)


def setup_tracing() -> None:
    """Prepare :func:`get_tracer`, and add ``correlation_id`` to all log records.

    The tracer is that of the OpenTelemetry SDK, if that is installed. The environment variable
    ``SNAKEPIT_OTEL_ENDPOINT`` sets the OTLP endpoint of its spans.
    """
    from snakepit_bridge.telemetry import _tracing

    _tracing.setup()


def get_tracer() -> Any:
    """Return the tracer, or ``None`` without :func:`setup_tracing` or the package opentelemetry."""
    from snakepit_bridge.telemetry import _tracing

    return _tracing.tracer
