"""Python tools for Snakepit hosts.

An adapter is a class whose methods, marked with :func:`tool`, the host can call by name. See :class:`BaseAdapter`.
"""

from snakepit_bridge._native import __version__
from snakepit_bridge.base_adapter import BaseAdapter, tool
from snakepit_bridge.chunks import StreamChunk
from snakepit_bridge.errors import (
    CallCancelled,
    DeadlineExceededError,
    HostToolError,
    HostUnavailableError,
    InvalidArgumentError,
    NotFoundError,
    SnakepitError,
)
from snakepit_bridge.session_context import Programs, SessionContext

__all__ = [
    "BaseAdapter",
    "CallCancelled",
    "DeadlineExceededError",
    "HostToolError",
    "HostUnavailableError",
    "InvalidArgumentError",
    "NotFoundError",
    "Programs",
    "SessionContext",
    "SnakepitError",
    "StreamChunk",
    "__version__",
    "tool",
]
