"""The id that links the events, log records and requests of one operation."""

from __future__ import annotations

from contextvars import ContextVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable
    from contextvars import Token

#: The header of requests that carries the id.
CORRELATION_HEADER = "x-snakepit-correlation-id"

_ID: ContextVar[str | None] = ContextVar("snakepit_correlation_id", default=None)


def new_correlation_id() -> str:
    """Return a new id: 32 hexadecimal digits."""
    from uuid import uuid4

    return uuid4().hex


def set_correlation_id(value: str) -> Token[str | None]:
    """Set the id of the current context. Return a token for :func:`reset_correlation_id`."""
    return _ID.set(value)


def reset_correlation_id(token: Token[str | None] | None) -> None:
    """Restore the id that :func:`set_correlation_id` replaced."""
    if token is not None:
        _ID.reset(token)


def get_correlation_id(default: str | None = None) -> str | None:
    """Return the id of the current context, or ``default`` if there is none."""
    value = _ID.get()
    return default if value is None else value


def outgoing_metadata(initial: Iterable[tuple[str, str]] | None = None) -> list[tuple[str, str]]:
    """Return headers for a request: the given ones, and the id if there is one."""
    headers = list(initial or ())
    value = get_correlation_id()
    return [*headers, (CORRELATION_HEADER, value)] if value else headers


def correlation_filter() -> logging.Filter:
    """Return a filter that sets ``correlation_id`` of log records, and ``-`` without an id."""
    import logging

    class CorrelationFilter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if not getattr(record, "correlation_id", None):
                record.correlation_id = get_correlation_id("-")
            return True

    return CorrelationFilter()


def found_in(headers: Iterable[tuple[str, str]] | None) -> str | None:
    """Return the id in headers."""
    return next((value for name, value in headers or () if name.lower() == CORRELATION_HEADER), None)
