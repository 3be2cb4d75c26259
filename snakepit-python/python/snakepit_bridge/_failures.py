"""Describes exceptions of tools for the host: type, message, and a traceback without frames of the runtime."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Any


class BrokenRuntimeError(Exception):
    """The runtime cannot continue, and the running call is not the cause. The worker is replaced."""


#: The files of this package whose frames precede those of a tool in a traceback.
_RUNTIME_FILES = tuple(
    __file__.replace("_failures.py", name)
    for name in ("_event_loop.py", "_running_loop.py", "_concurrent.py", "_contract.py", "_hints")
)


def describe(
    error: BaseException,
    function: Callable[..., Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[str, str, str]:
    """Return the type name, the message and the traceback of an exception.

    Args:
        error: The exception.
        function: The called function, if it is the tool itself.
        arguments: The arguments of the call.
    """
    # Imported late: it costs start-up time and memory, and many workers never need it.
    import traceback

    frames = _without_runtime(error.__traceback__)
    try:
        lines = traceback.format_exception(type(error), error, frames)
    except Exception:  # Attributes of the exception may raise. Its frames are still useful.
        lines = traceback.format_tb(frames)
    # A TypeError without frames comes from the call itself: the arguments do not match the signature.
    is_mismatch = type(error) is TypeError and frames is None and function is not None
    message = _mismatch(function, arguments) if is_mismatch and function is not None and arguments is not None else None
    return _text(type_name(type(error))), _text(message or _message(error)), _text("".join(lines))


def details(error: BaseException) -> tuple[str, bytes]:
    """Return the code of an exception, and its other parts as a JSON object. Leaves out values without a JSON form.

    The keys of the object are those of ``ToolFailure.details_json`` in the protocol.
    """
    from snakepit_bridge.errors import HostToolError, ToolError

    code = ""
    encoders: dict[str, Callable[[], str | None]] = {}
    if isinstance(error, (ToolError, HostToolError)):
        code = error.code if isinstance(error.code, str) else ""
        if error.data is not None:
            encoders["data"] = lambda: _json(error.data)
    encoders["args"] = lambda: _json_args(error)
    encoders["attributes"] = lambda: _json_attributes(error)
    parts: list[str] = []
    omitted: list[str] = []
    for name, encode in encoders.items():
        try:
            text = encode()
        except _TooLargeError:
            omitted.append(f'"{name}"')
        else:
            if text is not None:
                parts.append(f'"{name}": {text}')
    if omitted:
        parts.append(f'"omitted": [{", ".join(omitted)}]')
    return _text(code), ("{" + ", ".join(parts) + "}").encode() if parts else b""


#: The maximum size of a part of an exception, in characters of JSON. The host does not send larger parts.
_MAX_PART_SIZE = 256 * 1024


class _TooLargeError(Exception):
    """A part of an exception is too large to be sent."""


def _json_args(error: BaseException) -> str | None:
    """Return the arguments that have a JSON form, as a list."""
    texts: list[str] = []
    remaining = _MAX_PART_SIZE
    for value in _args(error):
        text = _json(value, remaining)
        # Values without a JSON form take time, too.
        remaining -= len(text or "") + 2
        if remaining < 0:
            raise _TooLargeError
        if text is not None:
            texts.append(text)
    return f"[{', '.join(texts)}]" if texts else None


def _json_attributes(error: BaseException) -> str | None:
    """Return the published attributes that have a JSON form, as an object."""
    entries: list[str] = []
    remaining = _MAX_PART_SIZE
    for name in _published(type(error)):
        # Importing `contextlib` would delay the start of each worker.
        try:
            text = _json(getattr(error, name), remaining)
        except _TooLargeError:
            raise
        except Exception:  # The attribute is a property that raises.
            text = None
        if text is not None:
            remaining -= len(text)
            entries.append(f"{_json(name)}: {text}")
    return f"{{{', '.join(entries)}}}" if entries else None


def _args(error: BaseException) -> tuple[Any, ...]:
    # A class may replace `args`.
    return error.args if isinstance(error.args, tuple) else ()


def _published(kind: type) -> list[str]:
    """Return the names of the attributes that an exception class and its bases publish."""
    names: dict[str, None] = {}
    for base in reversed(kind.__mro__):
        published = base.__dict__.get("__snakepit_attributes__", ())
        if isinstance(published, str):
            published = (published,)
        names.update((name, None) for name in published if isinstance(name, str))
    return list(names)


def _json(value: Any, limit: int = _MAX_PART_SIZE) -> str | None:
    """Return the JSON form of a value, or ``None`` if it has none.

    Raises:
        _TooLargeError: The form has more than ``limit`` characters. The rest of a list or a dictionary is not encoded.
    """
    import json

    if isinstance(value, str) and len(value) > limit:
        raise _TooLargeError
    chunks: list[str] = []
    size = 0
    try:
        # Unlike `dumps`, it encodes the items one by one.
        for chunk in json.JSONEncoder(ensure_ascii=False, allow_nan=False).iterencode(value):
            size += len(chunk)
            if size > limit:
                raise _TooLargeError
            chunks.append(chunk)
        text = "".join(chunks)
        # Fails for lone surrogates.
        text.encode()
    except _TooLargeError:
        raise
    except Exception:
        return None
    return text


def _text(text: str) -> str:
    """Escape lone surrogates, which cannot be encoded as UTF-8. Names of files that are not UTF-8 contain them."""
    return str.encode(text, "utf-8", "backslashreplace").decode("utf-8")


def type_name(kind: type) -> str:
    """Return the name of a type as the last line of a traceback shows it: with its module, unless it is a builtin."""
    module = kind.__module__
    if module in ("builtins", "__main__"):
        return kind.__qualname__
    # `__module__` may have been assigned another type.
    return f"{module if isinstance(module, str) else '<unknown>'}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # The type is useful even if `__str__` raises.
        return f"<its message cannot be read: {type_name(type(failure))}>"


def _mismatch(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    import inspect

    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(**arguments)
    except TypeError as error:
        parameters = ", ".join(name for name in signature.parameters)
        return f"the arguments do not match `{function.__name__}({parameters})`: {error}"
    return None


def _without_runtime(frames: TracebackType | None) -> TracebackType | None:
    files = _RUNTIME_FILES
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio.__file__ is not None:
        files += (asyncio.__file__.removesuffix("__init__.py"),)
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(files):
        frames = frames.tb_next
    return frames
