"""Tools that emit telemetry. tests/tests/telemetry.rs serves them."""

from __future__ import annotations

import os
import sys
from typing import Any

from snakepit_bridge import telemetry


def process_init() -> None:
    """Emit an event of the start."""
    telemetry.emit("start.loaded", {"models": 2})


def emit(name: str, count: int = 1, size: int = 0, correlation: str | None = None) -> None:
    """Emit events."""
    for index in range(count):
        measurements = {"index": index, "share": 0.5, "flag": True, "text": "t", "big": 2**70}
        telemetry.emit(name, measurements, {"padding": "x" * size, "number": 7}, correlation)


def work(fail: bool = False) -> str:
    """Run in a span."""
    with telemetry.otel_span("outer", context_metadata=[(telemetry.CORRELATION_HEADER, "abc")]):
        with telemetry.span("model.run", {"model": "small"}):
            if fail:
                raise LookupError("no model")
        return telemetry.get_correlation_id("none") or ""


def die(text: str) -> None:
    """Print a text and end the worker."""
    print(text, file=sys.stderr, flush=True)
    os._exit(3)


def dropped() -> dict[str, Any]:
    """Return the number of dropped events."""
    from snakepit_bridge.telemetry.stream import TelemetryStream

    return {"dropped": TelemetryStream().dropped_count, "enabled": telemetry.is_enabled()}


def switch(on: bool) -> None:
    """Drop all events, or print them."""
    from snakepit_bridge.telemetry.backends.stderr import StderrBackend

    telemetry.set_backend(StderrBackend() if on else None)


def emit_in_child() -> bool:
    """Emit in a fork, which must not disturb the worker."""
    child = os.fork()
    if child == 0:
        telemetry.emit("child", {})
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0
