"""The native runtime. Private: use the package's own modules."""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, final

from snakepit_bridge._plan import Plan
from snakepit_bridge.errors import SnakepitError

__version__: str

__all__ = [
    "Call",
    "ChunkSink",
    "ChunkSpace",
    "Completions",
    "HostCall",
    "HostClient",
    "HostToolStream",
    "LocalRunner",
    "LocalSession",
    "LocalVariables",
    "PendingHostCall",
    "Variable",
    "VariableUpdate",
    "VariableVersion",
    "VariableWatch",
    "Variables",
    "Wait",
    "Worker",
    "__version__",
    "decode",
    "encode",
    "from_json",
    "to_json",
]

@final
class Completions:
    """The keys of the finished waits of one event loop. The descriptor is readable while there are any."""

    def __new__(cls) -> Completions: ...
    def fileno(self) -> int: ...
    def take(self) -> list[int]: ...
    def complete(self, key: int) -> None: ...

@final
class Wait:
    """A wait of an event loop for a native task. Dropping it ends the wait."""

@final
class PendingHostCall:
    """A pending call of a host tool. Dropping it cancels the call."""

    def result(self) -> Any: ...

@final
class HostToolStream:
    """The results of a host tool that streams. Its end cancels the tool."""

    def next(self) -> tuple[Any] | None: ...
    def ready(self, completions: Completions, key: int) -> Wait: ...
    def take(self) -> tuple[Any] | None: ...
    def close(self) -> None: ...

@final
class Call:
    """The call that a tool serves, or the session that a client uses."""

    @property
    def session_id(self) -> str: ...
    @property
    def worker_id(self) -> str: ...
    @property
    def metadata(self) -> dict[str, str]: ...
    @property
    def traceparent(self) -> str | None: ...
    @property
    def tracestate(self) -> str | None: ...
    @property
    def cancelled(self) -> bool: ...
    def time_remaining(self) -> float | None: ...
    def call_host_tool(self, name: str, arguments: dict[str, Any]) -> Any: ...
    def start_host_tool(
        self, name: str, arguments: dict[str, Any], completions: Completions, key: int
    ) -> PendingHostCall: ...
    def stream_host_tool(self, name: str, arguments: dict[str, Any]) -> HostToolStream: ...
    def call_tool(self, name: str, arguments: dict[str, Any]) -> Any: ...
    def start_tool(
        self, name: str, arguments: dict[str, Any], completions: Completions, key: int
    ) -> PendingHostCall: ...
    def host_tools(self) -> dict[str, dict[str, Any]]: ...
    def variables(self) -> Variables: ...
    def put_program(
        self,
        name: str,
        data: bytes | bytearray | memoryview,
        content_type: str,
        metadata: dict[str, str],
        *,
        is_global: bool,
        ttl_seconds: int | None,
    ) -> bool: ...
    def get_program(self, name: str, is_global: bool) -> tuple[bytes, str]: ...
    def get_changed_program(
        self, name: str, is_global: bool, known: tuple[int, int] | None
    ) -> tuple[bytes, str, tuple[int, int]] | None: ...
    def list_programs(self, is_global: bool) -> list[str]: ...
    def delete_program(self, name: str, is_global: bool) -> None: ...
    def cleanup_session(self, force: bool) -> bool: ...

@final
class Variable:
    """A snapshot of a variable. Later writes do not change it."""

    @property
    def id(self) -> str:
        """The id, which starts with ``var_``. Registering a deleted variable again creates a new id."""
    @property
    def name(self) -> str:
        """The name."""
    @property
    def type(self) -> str:
        """The name of the type, such as ``float``."""
    @property
    def value(self) -> Any:
        """The value. Arrays are numpy arrays."""
    @property
    def version(self) -> int:
        """The version: 0 after the registration, plus 1 with each write."""
    @property
    def constraints(self) -> dict[str, Any]:
        """The constraints, as passed to ``register_variable``."""
    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the registration, merged with that of later writes."""
    @property
    def source(self) -> Literal["host", "python"]:
        """The side that wrote the value: ``host`` or ``python``."""
    @property
    def updated_at(self) -> datetime:
        """The time of the last write."""

@final
class VariableVersion:
    """One version of a variable, as stored by the host."""

    @property
    def version(self) -> int:
        """The number of the version. 0 is the registered value."""
    @property
    def value(self) -> Any:
        """The value of this version."""
    @property
    def updated_at(self) -> datetime:
        """The time of the write."""
    @property
    def changed_by(self) -> str:
        """The writer: ``changed_by`` of the metadata, by default the worker id, or else ``host`` or ``python``."""
    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the write."""

@final
class VariableUpdate:
    """A change of a watched variable."""

    @property
    def kind(self) -> Literal["initial", "registered", "set", "rolled_back", "deleted", "lost"]:
        """The kind of change. ``lost`` if updates were dropped because the watch did not read them fast enough."""
    @property
    def variable(self) -> Variable | None:
        """The variable after the change, or its last state if it was deleted. ``None`` if ``kind`` is ``lost``."""
    @property
    def lost(self) -> int:
        """The number of dropped updates. 0 unless ``kind`` is ``lost``."""
    @property
    def source(self) -> str:
        """The writer: ``changed_by`` of the metadata, by default the worker id, or else ``host`` or ``python``."""
    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the write."""
    @property
    def timestamp(self) -> datetime:
        """The time of the change."""

@final
class VariableWatch:
    """A stream of updates. It ends when the watch is closed, when its call or client ends, or with an error."""

    def next(self) -> VariableUpdate | None: ...
    def ready(self, completions: Completions, key: int) -> Wait: ...
    def take(self) -> VariableUpdate | None: ...
    def close(self) -> None: ...

@final
class Variables:
    """The variables of a call's session."""

    def register(
        self,
        name: str,
        type_name: str | None,
        initial_value: Any,
        constraints: dict[str, Any] | None,
        metadata: dict[str, str],
    ) -> str: ...
    def get(self, identifier: str) -> Variable: ...
    def set(self, identifier: str, value: Any, metadata: dict[str, str], expected_version: int | None) -> int: ...
    def get_many(self, identifiers: list[str]) -> tuple[dict[str, Variable], list[str]]: ...
    def set_many(
        self, updates: dict[str, Any], metadata: dict[str, str], expected_versions: dict[str, int], atomic: bool
    ) -> tuple[dict[str, int], dict[str, SnakepitError]]: ...
    def find(self, pattern: str) -> list[Variable]: ...
    def delete(self, identifier: str) -> None: ...
    def history(self, identifier: str, limit: int) -> list[VariableVersion]: ...
    def rollback(self, identifier: str, version: int) -> Variable: ...
    def watch(self, identifiers: list[str], initial: bool) -> VariableWatch: ...

@final
class ChunkSpace:
    """A handle for waiting until a full sink has space."""

    def wait(self) -> bool: ...

@final
class ChunkSink:
    """The sink for Python code that drains an async generator."""

    def put(self, item: Any) -> bool | None: ...
    def space(self) -> ChunkSpace: ...

@final
class Worker:
    """The native runtime of one worker process."""

    def __new__(cls) -> Worker: ...
    @property
    def interrupt_signal(self) -> int: ...
    def interrupt_due(self) -> bool: ...
    def defer_interrupt(self) -> None: ...
    def note_interruption(self, is_own: bool) -> None: ...
    def request_restore(self) -> None: ...
    def keep_loop_running(self) -> None: ...
    def remember_signal(self, number: int) -> None: ...
    def restore_signal(self, number: int) -> None: ...
    def fail(self, error: str, traceback: str | None = None) -> bool: ...
    def note_output(self, data: bytes) -> None: ...
    def open_stacks(self) -> int | None: ...
    def run(
        self,
        plan: Plan,
        *,
        host: str | None,
        socket: Path | str | None,
        port: int,
        worker_id: str,
        ready_file: Path | str | None,
    ) -> float | None: ...

@final
class HostCall:
    """A running call of a client. Dropping it cancels the call."""

    def result(self) -> Any: ...
    def chunk(self) -> Any: ...
    def ready(self, completions: Completions, key: int) -> Wait: ...
    def take_result(self) -> Any: ...
    def take_chunk(self) -> Any: ...
    def cancel(self) -> None: ...

@final
class HostClient:
    """A connection to a host."""

    def __new__(
        cls, address: str, connect_timeout: float, exceptions: tuple[type[Exception], ...] | None
    ) -> HostClient: ...
    def open_session(self, session_id: str, timeout: float | None) -> None: ...
    def session_call(self, session_id: str, timeout: float | None) -> Call: ...
    def tools(self, timeout: float | None) -> dict[str, dict[str, Any]]: ...
    def start(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        session_id: str,
        timeout: float | None,
        idempotent: bool,
        stream: bool,
    ) -> HostCall: ...
    def close(self, timeout: float | None) -> None: ...

@final
class LocalRunner:
    """Runs the tools of one adapter on the calling thread, for tests."""

    def __new__(cls, plan: Plan, worker_id: str) -> LocalRunner: ...
    def session_call(self, session_id: str) -> Call: ...
    def call(self, tool: str, arguments: Mapping[str, Any], session_id: str) -> Any: ...
    def stream(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        session_id: str,
        receive: Callable[[bytes, dict[str, str]], object],
    ) -> None: ...

@final
class LocalVariables:
    """The variables of a `LocalSession`."""

    def register(
        self,
        name: str,
        type_name: str | None,
        initial_value: Any,
        constraints: dict[str, Any] | None,
        metadata: dict[str, str],
    ) -> str: ...
    def get(self, identifier: str) -> Variable: ...
    def set(self, identifier: str, value: Any, metadata: dict[str, str], expected_version: int | None) -> int: ...
    def get_many(self, identifiers: list[str]) -> tuple[dict[str, Variable], list[str]]: ...
    def set_many(
        self, updates: dict[str, Any], metadata: dict[str, str], expected_versions: dict[str, int], atomic: bool
    ) -> tuple[dict[str, int], dict[str, SnakepitError]]: ...
    def find(self, pattern: str) -> list[Variable]: ...
    def delete(self, identifier: str) -> None: ...
    def history(self, identifier: str, limit: int) -> list[VariableVersion]: ...
    def rollback(self, identifier: str, version: int) -> Variable: ...
    def watch(self, identifiers: list[str], initial: bool) -> VariableWatch: ...

@final
class LocalSession:
    """One session without a host, for tests."""

    def __new__(cls, session_id: str) -> LocalSession: ...
    def open(self) -> None: ...
    def require(self) -> None: ...
    def end(self) -> None: ...
    def variables(self, call: Call) -> LocalVariables: ...

def to_json(value: Any, description: str) -> bytes: ...
def from_json(json: bytes) -> Any: ...
def encode(value: Any, description: str, *, is_argument: bool = False) -> tuple[str, bytes, bytes | None]: ...
def decode(type_name: str, json: bytes, binary: bytes | None = None) -> Any: ...
