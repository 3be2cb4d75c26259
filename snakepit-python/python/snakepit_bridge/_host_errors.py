"""Creates the exceptions for failures of host tools."""

from __future__ import annotations

import contextlib
from typing import Any

from snakepit_bridge._failures import FAILURE_ATTRIBUTE
from snakepit_bridge.errors import HostToolError


def create(text: str, tool: str, message: str, type_name: str, code: str, data: Any, python_type: str) -> Exception:
    """Return the exception for the failure of a host tool.

    Args:
        text: The type and the message of the error.
        tool: The name of the tool.
        message: The message of the error.
        type_name: The name of the error's type in Rust.
        code: The tool's name for the error.
        data: The value that the tool attached.
        python_type: The class of the exception: a builtin, or ``module:Class``. Empty for ``HostToolError``.
    """
    error = _instance(python_type, message) if python_type else None
    if error is None:
        return HostToolError(text, tool, type_name=type_name, code=code, data=data)
    # Classes with slots or properties may reject an attribute.
    for name, value in (("tool_name", tool), ("type_name", type_name), ("code", code), ("data", data)):
        with contextlib.suppress(Exception):
            setattr(error, name, value)
    # A caller of the Python tool receives them, too. The class may replace `code` and `data`.
    with contextlib.suppress(Exception):
        vars(error)[FAILURE_ATTRIBUTE] = (code, data)
    return error


def _instance(python_type: str, message: str) -> Exception | None:
    """Return an exception of a class, or ``None`` if the class does not exist or cannot be used."""
    # The module and the class run foreign code.
    try:
        kind = _find(python_type)
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            return None
        # Both would end an iteration instead of failing the call.
        if issubclass(kind, (StopIteration, StopAsyncIteration)):
            return None
        error = kind(message)
    except (Exception, SystemExit):
        return None
    # The `__new__` of a class may return any object.
    return error if isinstance(error, kind) else None


def _find(python_type: str) -> Any:
    import builtins
    import importlib

    module, _, name = python_type.rpartition(":")
    found: Any = importlib.import_module(module) if module else builtins
    for part in name.split("."):
        found = getattr(found, part)
    return found
