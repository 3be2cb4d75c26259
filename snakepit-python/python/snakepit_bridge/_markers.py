"""Markers in place of objects that have no wire form. Off by default."""

from __future__ import annotations

import os
import re

from snakepit_bridge._converters import full_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal

    Detail = Literal["none", "type", "repr"]

_DETAILS = ("none", "type", "repr")
_MAX_LENGTH = 10_000
#: The number of characters of a representation that are read beyond its maximum length. Redaction shortens the text.
_MARGIN = 4096
#: The number of final characters of a shortened text that are dropped, because they may be the beginning of a secret.
_TAIL = 64

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
#: A password at the end of a shortened text.
_CUT_PASSWORD = re.compile(r"(://[^/\s:@]+:)[^@\s/]+\Z")


class _Settings:
    detail: Detail | None = None
    max_length = 500
    redact: Callable[[str], str] | None = None
    #: Whether the program has set the detail.
    is_set = False
    #: Whether objects have the forms of the original Snakepit.
    has_original_forms = False


def unserializable_markers(
    detail: Detail | None = "type", *, max_length: int = 500, redact: Callable[[str], str] | None = None
) -> None:
    """Send a marker in place of each object without a wire form, in this process. By default, it is an error.

    The marker is ``{"__snakepit_unserializable__": True}``, with more entries by ``detail``. Objects of adapters of the
    original Snakepit keep the forms of its encoder, such as the result of ``to_dict``. The marker replaces only those
    of objects without such a form.

    Args:
        detail: ``"none"`` for no more entries, ``"type"`` to add the class as ``__type__``, ``"repr"`` to add its
            representation as ``__repr__``, too. ``None`` disables markers. For workers, the environment variable
            ``SNAKEPIT_UNSERIALIZABLE`` has the same meaning.
        max_length: The maximum length of a representation, up to 10,000 characters. Later characters are dropped before
            redaction. Only the deadline of the call limits the time and the memory of ``__repr__`` itself.
        redact: Removes additional secrets from a representation. Texts that look like passwords, tokens and keys are
            always replaced.

    Raises:
        ValueError: An argument is out of range.
    """
    if detail is not None and detail not in _DETAILS:
        raise ValueError(f"`detail` is {detail!r}, expected 'none', 'type', 'repr' or None")
    if not 0 <= max_length <= _MAX_LENGTH:
        raise ValueError(f"`max_length` is {max_length}, expected 0 to {_MAX_LENGTH}")
    _Settings.detail, _Settings.max_length, _Settings.redact = detail, max_length, redact
    _Settings.is_set = True


def use_original_forms() -> None:
    """Send the forms of ``serialization.GracefulJSONEncoder``, for adapters of the original Snakepit."""
    _Settings.has_original_forms = True


def marker(value: Any) -> Any:
    """Return the marker of an object, or ``NotImplemented`` if markers are disabled."""
    if _Settings.has_original_forms:
        from snakepit_bridge import serialization

        form = serialization.original_form(value)
        if form is not NotImplemented:
            return form
        if not _Settings.is_set:
            return serialization.original_marker(value)
    if _Settings.detail is None:
        return NotImplemented
    made: dict[str, Any] = {"__snakepit_unserializable__": True}
    if _Settings.detail != "none":
        made["__type__"] = full_name(type(value))
    if _Settings.detail == "repr":
        made["__repr__"] = _representation(value)
    return made


def _representation(value: Any) -> str:
    limit = _Settings.max_length
    try:
        text = repr(value)
        is_cut = len(text) > limit + _MARGIN
        if is_cut:
            text = text[: limit + _MARGIN]
        for pattern in (*_SECRETS, _CUT_PASSWORD) if is_cut else _SECRETS:
            text = pattern.sub(r"\1<redacted>", text)
        if is_cut:
            text = text[:-_TAIL]
        if _Settings.redact is not None:
            text = str(_Settings.redact(text))
        text = text.encode(errors="backslashreplace").decode()
    except Exception as error:
        # Without the text, which may contain the secret.
        return f"<no representation: {type(error).__name__}>"
    if is_cut or len(text) > limit:
        return f"{text[: max(limit - 3, 0)]}..."[:limit]
    return text


_environment = os.environ.get("SNAKEPIT_UNSERIALIZABLE")
if _environment:
    unserializable_markers(_environment)  # type: ignore[arg-type]
