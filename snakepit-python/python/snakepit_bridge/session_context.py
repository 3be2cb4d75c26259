"""What a tool knows about its call, and how it talks to the host."""

from __future__ import annotations

from collections.abc import MutableMapping

from snakepit_bridge import _native
from snakepit_bridge.errors import InvalidArgumentError, NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self

    from snakepit_bridge._call import CallLike

_JSON = "application/json"
_OCTETS = "application/octet-stream"


class SessionContext:
    """The call that a tool serves: its session, its deadline, the host behind it.

    As a context manager it ends the session when the block is left.
    """

    __slots__ = ("_call", "_host_tools")

    def __init__(self, call: CallLike) -> None:
        self._call = call
        self._host_tools: dict[str, dict[str, Any]] | None = None

    @property
    def session_id(self) -> str:
        """The session's id; empty when the call has none."""
        return self._call.session_id

    @property
    def worker_id(self) -> str:
        """The id under which the host knows this worker process."""
        return self._call.worker_id

    @property
    def metadata(self) -> dict[str, str]:
        """What the caller attached to the call."""
        return self._call.metadata

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context that the call came with. Calls to the host carry it on by themselves."""
        return self._call.traceparent

    @property
    def cancelled(self) -> bool:
        """Whether the call was cancelled or its deadline has passed: time to stop."""
        return self._call.cancelled

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, at least 0; ``None`` without one."""
        return self._call.time_remaining()

    @property
    def host_tools(self) -> dict[str, dict[str, Any]]:
        """The host's own tools by name, each with ``name``, ``description`` and ``parameters``. Asked for once."""
        if self._host_tools is None:
            self._host_tools = self._call.host_tools()
        return self._host_tools

    def call_host_tool(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool of the host and wait for its result. Other Python threads go on meanwhile.

        Raises:
            HostToolError: The tool failed.
            NotFoundError: The host has no such tool.
            InvalidArgumentError: The host refused the arguments.
            DeadlineExceededError: The call's own deadline passed.
            HostUnavailableError: The host cannot be reached.
            CallCancelled: The call was cancelled meanwhile.
        """
        return self._call.call_host_tool(name, arguments)

    async def call_host_tool_async(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool of the host without blocking the event loop. Raises what :meth:`call_host_tool` does."""
        # Imported where it is used: it is the largest part of a worker's start, and only coroutines need it.
        import asyncio

        pending = self._call.start_host_tool(name, arguments)
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()
        loop.add_reader(pending.fileno(), answered.set)
        try:
            await answered.wait()
        finally:
            loop.remove_reader(pending.fileno())
            pending.cancel()
        return pending.result()

    @property
    def programs(self) -> Programs:
        """The session's programs: named blobs, such as trained models, that the host keeps."""
        if not self._call.session_id:
            raise InvalidArgumentError("the call has no session, which programs belong to; call the tool with one")
        return Programs(self._call)

    def cleanup(self, force: bool = False) -> bool:
        """End the session on the host, with all it holds. Says whether the host did."""
        return self._call.cleanup_session(force)

    def __enter__(self) -> Self:
        """Return the context itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the session."""
        self.cleanup()

    # The names of the original protocol's Python package.
    elixir_tools = host_tools

    def call_elixir_tool(self, tool_name: str, **arguments: Any) -> Any:
        """Call a tool of the host, as :meth:`call_host_tool` does. The name may be given as a keyword here."""
        return self.call_host_tool(tool_name, **arguments)

    def __repr__(self) -> str:
        """Name the session."""
        return f"SessionContext(session_id={self.session_id!r})"


class Programs(MutableMapping[str, "Any"]):
    """The programs of a session, as a mapping. Every operation asks the host.

    ``bytes`` are kept as they are; anything else is kept as JSON and comes back as the object it was.
    """

    __slots__ = ("_call",)

    def __init__(self, call: CallLike) -> None:
        self._call = call

    def put(self, name: str, value: Any, metadata: dict[str, str] | None = None) -> bool:
        """Store a program, replacing one of the same name. Says whether the name was new."""
        if isinstance(value, bytes | bytearray | memoryview):
            return self._call.put_program(name, value, _OCTETS, metadata or {})
        data = _native.to_json(value, f"program {name!r}")
        return self._call.put_program(name, data, _JSON, metadata or {})

    def __getitem__(self, name: str) -> Any:
        """Fetch a program. Raises ``KeyError`` when there is none of this name."""
        try:
            data, content_type = self._call.get_program(name)
        except NotFoundError as error:
            raise KeyError(name) from error
        return _native.from_json(data) if content_type == _JSON else data

    def __setitem__(self, name: str, value: Any) -> None:
        """Store a program, replacing one of the same name."""
        self.put(name, value)

    def __delitem__(self, name: str) -> None:
        """Delete a program. Raises ``KeyError`` when there is none of this name."""
        try:
            self._call.delete_program(name)
        except NotFoundError as error:
            raise KeyError(name) from error

    def __contains__(self, name: object) -> bool:
        """Whether there is a program of this name; its data stays with the host."""
        return name in self._call.list_programs()

    def __iter__(self) -> Iterator[str]:
        """Go through the names, in order."""
        return iter(self._call.list_programs())

    def __len__(self) -> int:
        """How many there are."""
        return len(self._call.list_programs())
