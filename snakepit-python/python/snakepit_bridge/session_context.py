"""What a tool knows about its call, and how it talks to the host."""

from __future__ import annotations

from snakepit_bridge import _checked
from snakepit_bridge.errors import InvalidArgumentError
from snakepit_bridge.programs import GlobalPrograms, Programs
from snakepit_bridge.variables import SessionVariables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self

    from snakepit_bridge._call import CallLike


class SessionContext(SessionVariables):
    """The call that a tool serves: its session, its deadline, the host behind it.

    The session's variables are those of :class:`SessionVariables`: ``context["rate"] = 0.5``. As a context manager it
    ends the session when the block is left.
    """

    __slots__ = ("_host_tools",)

    def __init__(self, call: CallLike) -> None:
        super().__init__(call)
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
    def tracestate(self) -> str | None:
        """The vendor-specific part of that trace context, if the caller sent one. It travels with ``traceparent``."""
        return self._call.tracestate

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
        return self._call.call_host_tool(_checked.name("name", name), arguments)

    async def call_host_tool_async(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool of the host without blocking the event loop. Raises what :meth:`call_host_tool` does."""
        from snakepit_bridge._readiness import until_done

        name = _checked.name("name", name)
        # Dropped with a coroutine that is cancelled, which gives the call up.
        pending = await until_done(
            lambda completions, key: self._call.start_host_tool(name, arguments, completions, key)
        )
        return pending.result()

    @property
    def programs(self) -> Programs:
        """The session's programs: named blobs, such as trained models, that the host keeps."""
        if not self._call.session_id:
            raise InvalidArgumentError(
                "the call has no session, which programs belong to; call the tool with one, or use `global_programs`"
            )
        return Programs(self._call)

    @property
    def global_programs(self) -> GlobalPrograms:
        """The host's own programs, which every session sees; a call needs no session for them."""
        return GlobalPrograms(self._call)

    def cleanup(self, force: bool = False) -> bool:
        """End the session on the host, with all it holds. Says whether the host did."""
        return self._call.cleanup_session(_checked.flag("force", force))

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
