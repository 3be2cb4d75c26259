"""Python tools for Snakepit hosts.

An adapter is a class or a module. The decorator :func:`tool` makes the methods of a class tools, which the host calls
by name. See :class:`BaseAdapter`. The public functions of a module are tools, too.
"""

from snakepit_bridge import _native

#: The protocol of these files, as ``PROTOCOL`` in ``snakepit-proto/src/launch.rs``. Runtimes without it have number 1.
_PROTOCOL = 3
if (_found := getattr(_native, "PROTOCOL", 1)) != _PROTOCOL:
    # Hosts show the first 160 characters of the line.
    raise ImportError(
        f"the native runtime {_native.__version__} has protocol {_found}, its Python files have protocol {_PROTOCOL}; "
        "reinstall snakepit-bridge (in a checkout: `cargo xtask setup`)"
    )

from snakepit_bridge._current import Process, current_context
from snakepit_bridge._native import Variable, VariableUpdate, VariableVersion, __version__
from snakepit_bridge.base_adapter import BaseAdapter, tool
from snakepit_bridge.chunks import StreamChunk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from snakepit_bridge._converters import Converter, converter
    from snakepit_bridge._encoded import Encoded
    from snakepit_bridge._launch import DaemonError
    from snakepit_bridge._markers import unserializable_markers
    from snakepit_bridge._serve import serve
    from snakepit_bridge._worker_info import WorkerInfo, worker_info
    from snakepit_bridge.client import AsyncClient, AsyncSession, Client, Session
    from snakepit_bridge.errors import (
        AccessDeniedError,
        AlreadyExistsError,
        BatchError,
        CallCancelled,
        CallCancelledError,
        ClientClosedError,
        ConnectTimeoutError,
        DeadlineExceededError,
        DeadlockError,
        HostToolError,
        HostUnavailableError,
        InvalidArgumentError,
        InvalidTypeError,
        LimitExceededError,
        NotFoundError,
        OverloadedError,
        ProgramNotFoundError,
        ShuttingDownError,
        SnakepitError,
        ToolError,
        ToolFailed,
        UnsupportedError,
        ValidationError,
        VariableNotFoundError,
        VersionConflictError,
        WorkerLostError,
    )
    from snakepit_bridge.heartbeat import HeartbeatClient, HeartbeatConfig
    from snakepit_bridge.host_tools import HostTool, HostTools
    from snakepit_bridge.logging_config import configure_logging, get_logger
    from snakepit_bridge.programs import GlobalPrograms, Programs
    from snakepit_bridge.session_context import SessionContext
    from snakepit_bridge.tasks import worker_task
    from snakepit_bridge.variables import VariableType
    from snakepit_bridge.zero_copy import ZeroCopyRef

#: The modules of names that are imported on first use, because workers start faster without them.
_LAZY = {
    "AccessDeniedError": "errors",
    "AlreadyExistsError": "errors",
    "AsyncClient": "client",
    "AsyncSession": "client",
    "BatchError": "errors",
    "CallCancelled": "errors",
    "CallCancelledError": "errors",
    "Client": "client",
    "ClientClosedError": "errors",
    "ConnectTimeoutError": "errors",
    "Converter": "_converters",
    "DaemonError": "_launch",
    "DeadlineExceededError": "errors",
    "DeadlockError": "errors",
    "Encoded": "_encoded",
    "GlobalPrograms": "programs",
    "HeartbeatClient": "heartbeat",
    "HeartbeatConfig": "heartbeat",
    "HostTool": "host_tools",
    "HostToolError": "errors",
    "HostTools": "host_tools",
    "HostUnavailableError": "errors",
    "InvalidArgumentError": "errors",
    "InvalidTypeError": "errors",
    "LimitExceededError": "errors",
    "NotFoundError": "errors",
    "OverloadedError": "errors",
    "ProgramNotFoundError": "errors",
    "Programs": "programs",
    "Session": "client",
    "SessionContext": "session_context",
    "ShuttingDownError": "errors",
    "SnakepitError": "errors",
    "ToolError": "errors",
    "ToolFailed": "errors",
    "UnsupportedError": "errors",
    "ValidationError": "errors",
    "VariableNotFoundError": "errors",
    "VariableType": "variables",
    "VersionConflictError": "errors",
    "WorkerInfo": "_worker_info",
    "WorkerLostError": "errors",
    "ZeroCopyRef": "zero_copy",
    "configure_logging": "logging_config",
    "converter": "_converters",
    "get_logger": "logging_config",
    "serve": "_serve",
    "unserializable_markers": "_markers",
    "worker_info": "_worker_info",
    "worker_task": "tasks",
}


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None and (name.startswith("_") or name not in _LAZY.values()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if module is None:
        # The public modules of these names are attributes, too, as if they were imported here.
        return import_module(f"{__name__}.{name}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "AccessDeniedError",
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncSession",
    "BaseAdapter",
    "BatchError",
    "CallCancelled",
    "CallCancelledError",
    "Client",
    "ClientClosedError",
    "ConnectTimeoutError",
    "Converter",
    "DaemonError",
    "DeadlineExceededError",
    "DeadlockError",
    "Encoded",
    "GlobalPrograms",
    "HeartbeatClient",
    "HeartbeatConfig",
    "HostTool",
    "HostToolError",
    "HostTools",
    "HostUnavailableError",
    "InvalidArgumentError",
    "InvalidTypeError",
    "LimitExceededError",
    "NotFoundError",
    "OverloadedError",
    "Process",
    "ProgramNotFoundError",
    "Programs",
    "Session",
    "SessionContext",
    "ShuttingDownError",
    "SnakepitError",
    "StreamChunk",
    "ToolError",
    "ToolFailed",
    "UnsupportedError",
    "ValidationError",
    "Variable",
    "VariableNotFoundError",
    "VariableType",
    "VariableUpdate",
    "VariableVersion",
    "VersionConflictError",
    "WorkerInfo",
    "WorkerLostError",
    "ZeroCopyRef",
    "__version__",
    "configure_logging",
    "converter",
    "current_context",
    "get_logger",
    "serve",
    "tool",
    "unserializable_markers",
    "worker_info",
    "worker_task",
]
