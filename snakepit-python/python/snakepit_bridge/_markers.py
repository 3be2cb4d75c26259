"""Markers in place of objects that have no wire form. Off by default."""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal

    Detail = Literal["none", "type", "repr"]

_DETAILS = ("none", "type", "repr")
_MAX_LENGTH = 10_000

#: Texts in a representation that are probably secret.
_SECRETS = (
    re.compile(
        r"(?i)((?:password|passwd|secret|token|api[_-]?key|authorization|credential)s?['\"]?\s*[=:]\s*)[^\s,;)}\]]+"
    ),
    re.compile(r"(?i)(bearer\s+)[a-z0-9._~+/=-]{8,}"),
    re.compile(r"()\b(?:sk|pk|ghp|gho|xox[abp])[-_][A-Za-z0-9_-]{8,}"),
    re.compile(r"()\bAKIA[A-Z0-9]{16}\b"),
    re.compile(r"(://[^/\s:@]+:)[^@\s/]+(?=@)"),
)


class _Settings:
    detail: Detail | None = None
    max_length = 500
    redact: Callable[[str], str] | None = None
    #: Replaces the marker by another form of the object.
    fallback: Callable[[Any], Any] | None = None


def unserializable_markers(
    detail: Detail | None = "type", *, max_length: int = 500, redact: Callable[[str], str] | None = None
) -> None:
    """Send a marker in place of each object without a wire form, in this process. By default, it is an error.

    The marker is ``{"__snakepit_unserializable__": True}``, with more entries by ``detail``.

    Args:
        detail: ``"none"`` for no more entries, ``"type"`` to add the class as ``__type__``, ``"repr"`` to add its
            representation as ``__repr__``, too. ``None`` disables markers. For workers, the environment variable
            ``SNAKEPIT_UNSERIALIZABLE`` has the same meaning.
        max_length: The maximum length of a representation, up to 10,000 characters.
        redact: Removes further secrets from a representation. Texts that look like passwords, tokens and keys are
            always replaced.

    Raises:
        ValueError: An argument is out of range.
    """
    if detail is not None and detail not in _DETAILS:
        raise ValueError(f"`detail` is {detail!r}, expected 'none', 'type', 'repr' or None")
    if not 0 <= max_length <= _MAX_LENGTH:
        raise ValueError(f"`max_length` is {max_length}, expected 0 to {_MAX_LENGTH}")
    _Settings.detail, _Settings.max_length, _Settings.redact = detail, max_length, redact
    _Settings.fallback = None


def use_original_forms() -> None:
    """Send the forms of ``serialization.GracefulJSONEncoder``, for adapters of the original Snakepit."""

    def original_form(value: Any) -> Any:
        from snakepit_bridge.serialization import GracefulJSONEncoder

        return GracefulJSONEncoder().default(value)

    _Settings.fallback = original_form


def marker(value: Any) -> Any:
    """Return the marker of an object, or ``NotImplemented`` if markers are disabled."""
    if _Settings.fallback is not None:
        return _Settings.fallback(value)
    if _Settings.detail is None:
        return NotImplemented
    made: dict[str, Any] = {"__snakepit_unserializable__": True}
    if _Settings.detail != "none":
        cls = type(value)
        made["__type__"] = f"{cls.__module__}.{cls.__qualname__}"
    if _Settings.detail == "repr":
        made["__repr__"] = _representation(value)
    return made


def _representation(value: Any) -> str:
    try:
        text = repr(value)
        for pattern in _SECRETS:
            text = pattern.sub(r"\1<redacted>", text)
        if _Settings.redact is not None:
            text = str(_Settings.redact(text))
    except Exception as error:
        # Without the text, which may contain the secret.
        return f"<no representation: {type(error).__name__}>"
    text = text.encode(errors="backslashreplace").decode()
    limit = _Settings.max_length
    return text if len(text) <= limit else f"{text[: max(limit - 3, 0)]}..."


_environment = os.environ.get("SNAKEPIT_UNSERIALIZABLE")
if _environment:
    unserializable_markers(_environment)  # type: ignore[arg-type]
