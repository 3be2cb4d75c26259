"""Context managers around operations."""

from __future__ import annotations

import time

from snakepit_bridge.telemetry import _correlation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextvars import Token
    from types import TracebackType
    from typing import Any


class Span:
    """Emits events at the start and the end of a block. Also a decorator of functions. See :func:`telemetry.span`."""

    def __init__(
        self,
        emit: Callable[..., None],
        operation: str,
        metadata: Mapping[str, Any] | None,
        correlation_id: str | None,
    ) -> None:
        self._parts = emit, operation, metadata, correlation_id
        #: The starts of the blocks that run, by a clock that never goes back.
        self._starts: list[int] = []

    def __enter__(self) -> None:
        """Emit the start."""
        emit, operation, metadata, correlation = self._parts
        self._starts.append(time.monotonic_ns())
        emit(f"{operation}.start", {"system_time": time.time_ns()}, metadata, correlation)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Emit the end."""
        emit, operation, metadata, correlation = self._parts
        duration = {"duration": time.monotonic_ns() - self._starts.pop()}
        if error is None:
            emit(f"{operation}.stop", duration, metadata, correlation)
        else:
            described = {**(metadata or {}), "error_type": type(error).__name__, "error_message": str(error)}
            emit(f"{operation}.exception", duration, described, correlation)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that runs in a span. The span of a coroutine or a generator lasts until its end."""
        import inspect
        from functools import wraps

        @wraps(function)
        def plain(*args: Any, **kwargs: Any) -> Any:
            with Span(*self._parts):
                return function(*args, **kwargs)

        @wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            with Span(*self._parts):
                return await function(*args, **kwargs)

        @wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Any:
            with Span(*self._parts):
                return (yield from function(*args, **kwargs))

        @wraps(function)
        async def async_generator(*args: Any, **kwargs: Any) -> Any:
            from contextlib import aclosing

            with Span(*self._parts):
                async with aclosing(function(*args, **kwargs)) as items:
                    async for item in items:
                        yield item

        if inspect.iscoroutinefunction(function):
            return coroutine
        if inspect.isasyncgenfunction(function):
            return async_generator
        return generator if inspect.isgeneratorfunction(function) else plain


class OtelSpan:
    """Sets the correlation id for a block, in a span of OpenTelemetry. See :func:`telemetry.otel_span`."""

    def __init__(
        self,
        tracer: Callable[[], Any],
        name: str,
        headers: Iterable[tuple[str, str]] | None,
        attributes: Mapping[str, Any] | None,
    ) -> None:
        self._tracer = tracer
        self._name = name
        self._headers = list(headers or ())
        self._attributes = dict(attributes or {})
        self._token: Token[str | None] | None = None
        self._span: Any = None

    def __enter__(self) -> Any:
        """Return the span, or ``None`` without a tracer."""
        current = _correlation.found_in(self._headers) or _correlation.get_correlation_id()
        correlation = current or _correlation.new_correlation_id()
        self._token = _correlation.set_correlation_id(correlation)
        tracer = self._tracer()
        if tracer is None:
            return None
        attributes = {**self._attributes, "snakepit.correlation_id": correlation}
        self._span = tracer.start_as_current_span(self._name, attributes=attributes)
        return self._span.__enter__()

    def __exit__(self, *error: Any) -> None:
        """End the span, and restore the correlation id."""
        try:
            if self._span is not None:
                self._span.__exit__(*error)
        finally:
            _correlation.reset_correlation_id(self._token)
