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
    def __new__(cls) -> Completions: ...
    def fileno(self) -> int: ...
    def take(self) -> list[int]: ...
    def complete(self, key: int) -> None: ...

@final
class Wait: ...

@final
class PendingHostCall:
    def result(self) -> Any: ...

@final
class Call:
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
    def list_programs(self, is_global: bool) -> list[str]: ...
    def delete_program(self, name: str, is_global: bool) -> None: ...
    def cleanup_session(self, force: bool) -> bool: ...

@final
class Variable:
    """A variable as it was when the host told of it. Later writes do not change it."""

    @property
    def id(self) -> str:
        """Its id, which begins with ``var_``. One that is deleted and registered anew has another."""
    @property
    def name(self) -> str:
        """Its name."""
    @property
    def type(self) -> str:
        """The name of its type, such as ``float``."""
    @property
    def value(self) -> Any:
        """Its value."""
    @property
    def version(self) -> int:
        """How many times it was written since it was registered."""
    @property
    def constraints(self) -> dict[str, Any]:
        """What its values must keep to, by the names that ``register_variable`` takes."""
    @property
    def metadata(self) -> dict[str, str]:
        """What its registration and the writes since then attached."""
    @property
    def source(self) -> Literal["host", "python"]:
        """Which side wrote the value: ``host`` or ``python``."""
    @property
    def updated_at(self) -> datetime:
        """When the value was written."""

@final
class VariableVersion:
    """A value that a variable has, or had."""

    @property
    def version(self) -> int:
        """Its number: 0 for the value of the registration."""
    @property
    def value(self) -> Any:
        """The value."""
    @property
    def updated_at(self) -> datetime:
        """When it was written."""
    @property
    def changed_by(self) -> str:
        """Who wrote it: a worker's id, or whatever the writer said of itself."""
    @property
    def metadata(self) -> dict[str, str]:
        """What the write attached."""

@final
class VariableUpdate:
    """Something that happened to a variable."""

    @property
    def kind(self) -> Literal["initial", "registered", "set", "rolled_back", "deleted", "lost"]:
        """What happened; ``lost`` where updates are missing, because they came faster than they were taken."""
    @property
    def variable(self) -> Variable | None:
        """The variable after it, or, once it is deleted, as it was last; ``None`` if ``kind`` is ``lost``."""
    @property
    def lost(self) -> int:
        """How many updates are missing here; 0 unless ``kind`` is ``lost``."""
    @property
    def source(self) -> str:
        """Which side did it, or who."""
    @property
    def metadata(self) -> dict[str, str]:
        """What the write attached."""
    @property
    def timestamp(self) -> datetime:
        """When it happened."""

@final
class VariableWatch:
    def next(self) -> VariableUpdate | None: ...
    def ready(self, completions: Completions, key: int) -> Wait: ...
    def take(self) -> VariableUpdate | None: ...
    def close(self) -> None: ...

@final
class Variables:
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
    def wait(self) -> bool: ...

@final
class ChunkSink:
    def put(self, item: Any) -> bool | None: ...
    def space(self) -> ChunkSpace: ...

@final
class Worker:
    def __new__(cls) -> Worker: ...
    @property
    def interrupt_signal(self) -> int: ...
    def interrupt_due(self) -> bool: ...
    def defer_interrupt(self) -> None: ...
    def note_cut(self, is_own: bool) -> None: ...
    def unsettle(self) -> None: ...
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
    ) -> None: ...

@final
class HostCall:
    def result(self) -> Any: ...
    def chunk(self) -> Any: ...
    def ready(self, completions: Completions, key: int) -> Wait: ...
    def take_result(self) -> Any: ...
    def take_chunk(self) -> Any: ...
    def cancel(self) -> None: ...

@final
class HostClient:
    def __new__(cls, address: str, timeout: float) -> HostClient: ...
    def open_session(self, session_id: str, timeout: float | None) -> None: ...
    def outside(self, session_id: str, timeout: float | None) -> Call: ...
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
    def __new__(cls, plan: Plan, worker_id: str) -> LocalRunner: ...
    def outside(self, session_id: str) -> Call: ...
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
    def __new__(cls, session_id: str) -> LocalSession: ...
    def open(self) -> None: ...
    def require(self) -> None: ...
    def end(self) -> None: ...
    def variables(self, call: Call) -> LocalVariables: ...

def to_json(value: Any, what: str) -> bytes: ...
def from_json(json: bytes) -> Any: ...
def encode(value: Any, what: str) -> tuple[str, bytes, bytes | None]: ...
def decode(type_name: str, json: bytes, binary: bytes | None = None) -> Any: ...
