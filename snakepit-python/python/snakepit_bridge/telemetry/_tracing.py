"""The tracer of the OpenTelemetry SDK, if that is installed, and correlation ids in log records."""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

from snakepit_bridge.telemetry import _correlation

#: The tracer. ``None`` before :func:`setup` and without the SDK.
tracer: Any = None

_is_set_up = False


def setup() -> None:
    """Create the tracer, and mark log records. Calls after the first have no effect."""
    global tracer, _is_set_up
    if _is_set_up:
        return
    _is_set_up = True
    _mark_records()
    try:
        tracer = _create()
    except ImportError:
        tracer = None


def _create() -> Any:
    trace = importlib.import_module("opentelemetry.trace")
    sdk = importlib.import_module("opentelemetry.sdk.trace")
    resources = importlib.import_module("opentelemetry.sdk.resources")
    attributes = {
        "service.name": os.environ.get("SNAKEPIT_SERVICE_NAME", "snakepit.python.bridge"),
        "service.namespace": "snakepit",
        "service.instance.id": os.environ.get("SNAKEPIT_INSTANCE_ID") or _correlation.new_correlation_id(),
    }
    provider = sdk.TracerProvider(resource=resources.Resource.create(attributes))
    endpoint = os.environ.get("SNAKEPIT_OTEL_ENDPOINT")
    if endpoint:
        exporter = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        provider.add_span_processor(export.BatchSpanProcessor(exporter.OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
    return trace.get_tracer("snakepit.bridge")


def _mark_records() -> None:
    """Set ``correlation_id`` of all log records."""
    create = logging.getLogRecordFactory()

    def marked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = create(*args, **kwargs)
        if not getattr(record, "correlation_id", None):
            record.correlation_id = _correlation.get_correlation_id("-")
        return record

    logging.setLogRecordFactory(marked)
