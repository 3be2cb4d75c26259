"""Exceptions of tools as the host shows them: type, message, and a traceback without the runtime's own frames."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Any


class BrokenRuntimeError(Exception):
    """The runtime itself cannot go on, through nothing that the call which runs has done: its worker is replaced."""


#: Code of this package that stands between the runtime and a tool.
_RUNTIME_FILES = tuple(__file__.replace("_failures.py", name) for name in ("_event_loop.py", "_running_loop.py"))


def describe(
    error: BaseException,
    function: Callable[..., Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[str, str, str]:
    """Take an exception apart: type, message, traceback.

    Args:
        error: The exception.
        function: What was called, if it was the tool itself.
        arguments: With what it was called.
    """
    # With the first failure: it is a part of a worker's start and memory that many never need.
    import traceback

    own = _without_runtime(error.__traceback__)
    try:
        lines = traceback.format_exception(type(error), error, own)
    except Exception:  # Attributes of an odd exception can make this fail; its frames are still worth showing.
        lines = traceback.format_tb(own)
    # A TypeError without a single frame is the call's own: the arguments did not fit the signature.
    misfit = type(error) is TypeError and own is None and function is not None
    message = _misfit(function, arguments) if misfit and function is not None and arguments is not None else None
    return _text(type_name(type(error))), _text(message or _message(error)), _text("".join(lines))


def _text(text: str) -> str:
    """Escape what UTF-8 has no form for: lone surrogates, as bytes of file names become that are not UTF-8."""
    return str.encode(text, "utf-8", "backslashreplace").decode("utf-8")


def type_name(kind: type) -> str:
    """Name a type as the last line of a traceback does: the qualified name, after the module unless that is obvious."""
    module = kind.__module__
    if module in ("builtins", "__main__"):
        return kind.__qualname__
    # Python lets anything be assigned to it.
    return f"{module if isinstance(module, str) else '<unknown>'}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # Whatever its `__str__` raises, the type is still worth telling.
        return f"<its message cannot be read: {type_name(type(failure))}>"


def _misfit(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    import inspect

    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(**arguments)
    except TypeError as error:
        parameters = ", ".join(name for name in signature.parameters)
        return f"the arguments do not fit `{function.__name__}({parameters})`: {error}"
    return None


def _without_runtime(frames: TracebackType | None) -> TracebackType | None:
    files = _RUNTIME_FILES
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio.__file__ is not None:
        files += (asyncio.__file__.removesuffix("__init__.py"),)
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(files):
        frames = frames.tb_next
    return frames
