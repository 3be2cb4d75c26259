"""The listings of a host: its tools, its workers, its pool and its sessions."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict


class ParameterInfo(TypedDict):
    """A parameter of a tool."""

    name: str
    #: The type on the wire, such as ``integer``. The schema is more precise.
    type: str
    description: str
    required: bool


class ToolInfo(TypedDict):
    """A tool of a host."""

    name: str
    description: str
    #: The parameters and the result in Python's notation, such as ``add(*, a: int, b: float = 1.0) -> float``.
    signature: str
    parameters: list[ParameterInfo]
    supports_streaming: bool
    #: ``host``, or the name of a pool.
    provider: str
    #: The JSON Schema of the arguments.
    input_schema: dict[str, Any]
    #: The JSON Schema of the result. ``None`` if the tool does not declare it.
    result_schema: dict[str, Any] | None
    #: The JSON Schema of stream items. ``None`` if the tool does not declare it.
    item_schema: dict[str, Any] | None


class WorkerStatus(TypedDict):
    """A worker of a host."""

    id: str
    #: The id of its process. ``None`` if none runs.
    pid: int | None
    #: ``starting``, ``idle``, ``busy``, ``quarantined``, ``stopping`` or ``dead``. A newer host may report others.
    state: str
    #: The address on which it serves. Empty unless it is up.
    address: str
    #: The time at which it became ready for calls. ``None`` if it is not up.
    started_at: datetime | None
    #: The number of calls that ended on workers of this slot, including failed calls.
    calls: int
    #: The number of workers that were launched in this slot after the first.
    restarts: int
    #: The id of the last worker of this slot that has exited, and why it ended. ``None`` before the first exit.
    last_end: str | None


class CallTotals(TypedDict):
    """The number of ended calls by outcome. A call may count several times in ``retried``."""

    succeeded: int
    failed: int
    rejected: int
    timed_out: int
    cancelled: int
    lost: int
    retried: int


class PoolStatus(TypedDict):
    """The state of a host's pool."""

    name: str
    #: The number of calls that wait for a worker.
    queued: int
    #: The number of calls that wait for room in the full queue.
    waiting_for_room: int
    #: The number of calls that hold a worker.
    in_flight: int
    workers: list[WorkerStatus]
    #: The workers that finish their calls beside their replacements.
    retired_workers: list[WorkerStatus]
    calls: CallTotals


class SessionInfo(TypedDict):
    """A session of a host."""

    id: str
    metadata: dict[str, str]
    created_at: datetime | None
    #: Seconds until it expires, unless it is used.
    expires_in: float
    #: Seconds without use after which it expires.
    ttl: float
    variable_count: int
    program_count: int
    #: The size of its metadata, variables with their history, and programs.
    bytes: int
    #: The worker that served the session last.
    last_worker: str | None
