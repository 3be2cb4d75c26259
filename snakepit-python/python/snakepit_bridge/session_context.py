"""The context of a call: what a tool can read about it, and its access to the host."""

from __future__ import annotations

from snakepit_bridge import _checked, _current
from snakepit_bridge.errors import InvalidArgumentError
from snakepit_bridge.variables import SessionVariables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from types import TracebackType
    from typing import Any, Self

    from snakepit_bridge.host_stream import HostStream
    from snakepit_bridge.host_tools import HostTools
    from snakepit_bridge.programs import GlobalPrograms, Programs


class SessionContext(SessionVariables):
    """The context of the call that a tool serves: its session, its deadline and its host.

    A tool finds it in ``self.session_context`` or with :func:`snakepit_bridge.current_context`. It has the methods of
    :class:`SessionVariables` for the session's variables, such as ``context["rate"] = 0.5``. As a context manager, it
    deletes the session at the end of the block.
    """

    __slots__ = ("_host_tools",)

    def __init__(
        self, call: Any, session_id: str | None = None, request_metadata: Mapping[str, str] | None = None
    ) -> None:
        """Create the context of a call. The runtime does so.

        Args:
            call: The call. With ``session_id``, a gRPC stub of the bridge service, as in the original Snakepit.
            session_id: The id of the session.
            request_metadata: The metadata of the request.
        """
        if session_id is not None:
            from snakepit_bridge._stub import StubCall

            call = StubCall(call, session_id, request_metadata or {})
        super().__init__(call)
        self._host_tools: dict[str, dict[str, Any]] | None = None

    @property
    def session_id(self) -> str:
        """The id of the session. Empty if the call has no session."""
        return self._call.session_id

    @property
    def request_id(self) -> str:
        """The id of the call, as in the logs of the host. Attempts of a call on several workers share it."""
        return self._call.request_id

    @property
    def tool(self) -> str:
        """The name of the tool that the call runs."""
        return self._call.tool

    @property
    def worker_id(self) -> str:
        """The id of this worker process on the host."""
        return self._call.worker_id

    @property
    def process(self) -> _current.Process:
        """A namespace that lives as long as the worker, with the objects of ``lifespan`` and ``process_init``."""
        return _current.process()

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata that the caller attached to the call."""
        return self._call.metadata

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context of the call. Requests to the host propagate it automatically."""
        return self._call.traceparent

    @property
    def tracestate(self) -> str | None:
        """The vendor-specific part of the trace context, if the caller sent one.

        Requests propagate it with ``traceparent``.
        """
        return self._call.tracestate

    @property
    def cancelled(self) -> bool:
        """Whether the call was cancelled or its deadline has passed. If so, the tool should stop."""
        return self._call.cancelled

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline, at least 0. ``None`` without a deadline."""
        return self._call.time_remaining()

    @property
    def deadline(self) -> datetime | None:
        """The time at which the call ends, in UTC. ``None`` without a deadline.

        It changes with the system clock. :meth:`time_remaining` does not.
        """
        remaining = self._call.time_remaining()
        if remaining is None:
            return None
        from datetime import UTC, datetime, timedelta

        return datetime.now(UTC) + timedelta(seconds=remaining)

    def report_progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Report how far the call is to its caller, if the caller receives progress.

        Frequent reports are cheap: about twenty a second are sent, and always the last one.

        >>> for step in range(100):  # doctest: +SKIP
        ...     context.report_progress(step + 1, 100, f"step {step + 1}")

        Args:
            done: The work that is done, in any unit.
            total: The whole work, if it is known.
            message: A human-readable message, of which 1024 bytes are sent.

        Raises:
            InvalidTypeError: A number or the text has another type.
            InvalidArgumentError: A number is negative, infinite or NaN.
        """
        _checked.text("message", message)
        self._call.report_progress(
            _checked.amount("done", done), None if total is None else _checked.amount("total", total), message
        )

    @property
    def host(self) -> HostTools:
        """The host's own tools as attributes: ``context.host.discount(item="tea")``. Sends no request."""
        from snakepit_bridge.host_tools import HostTools

        return HostTools(self)

    @property
    def host_tools(self) -> dict[str, dict[str, Any]]:
        """The host's own tools by name, each with ``name``, ``description``, ``parameters`` and ``supports_streaming``.

        The context requests them once.
        """
        if self._host_tools is None:
            self._host_tools = self._call.host_tools()
        return self._host_tools

    def call_host_tool(self, name: str, /, **arguments: Any) -> Any:
        """Call a host tool and wait for its result. Other Python threads continue to run.

        >>> context.call_host_tool("discount", item="tea")  # doctest: +SKIP
        0.5

        Args:
            name: The name of the host tool.
            arguments: Its arguments.

        Raises:
            HostToolError: The tool failed. It may also choose another exception class, such as ``KeyError``. All have
                the attributes ``code`` and ``data`` of the tool's error.
            UnsupportedError: The tool streams its results. Use :meth:`stream_host_tool`.
            NotFoundError: The tool does not exist.
            InvalidArgumentError: The host rejected the arguments.
            DeadlineExceededError: The deadline of this call passed.
            HostUnavailableError: The host cannot be reached.
            CallCancelled: This call was cancelled.
        """
        return self._call.call_host_tool(_checked.name("name", name), arguments)

    async def call_host_tool_async(self, name: str, /, **arguments: Any) -> Any:
        """Call a host tool without blocking the event loop. Raises as :meth:`call_host_tool` does."""
        from snakepit_bridge._readiness import until_done

        name = _checked.name("name", name)
        # A cancelled coroutine drops the pending call, which cancels it.
        pending = await until_done(
            lambda completions, key: self._call.start_host_tool(name, arguments, completions, key)
        )
        return pending.result()

    def call_tool(self, name: str, /, **arguments: Any) -> Any:
        """Call another Python tool or a host tool, and wait for its result.

        The nested call runs in the session of this call, and ends with this call at the latest. A Python tool needs a
        second worker, because this one runs the caller.

        >>> context.call_tool("embed", text="tea")  # doctest: +SKIP
        [0.1, 0.2]

        Args:
            name: The name of the tool.
            arguments: Its arguments.

        Raises:
            ToolFailed: The tool raised an exception.
            DeadlockError: Every worker runs a call that waits for this one, so it could never begin.
            UnsupportedError: The tool streams its results. Use :meth:`stream_tool`.
            NotFoundError: The tool does not exist.
            InvalidArgumentError: The host rejected the arguments.
            DeadlineExceededError: The deadline of this call passed.
            HostUnavailableError: The host cannot be reached, is overloaded, or shuts down.
            CallCancelled: This call was cancelled.
        """
        return self._call.call_tool(_checked.name("name", name), arguments)

    async def call_tool_async(self, name: str, /, **arguments: Any) -> Any:
        """Call another tool without blocking the event loop. Raises as :meth:`call_tool` does."""
        from snakepit_bridge._readiness import until_done

        name = _checked.name("name", name)
        # A cancelled coroutine drops the pending call, which cancels it.
        pending = await until_done(lambda completions, key: self._call.start_tool(name, arguments, completions, key))
        return pending.result()

    def stream_tool(self, name: str, /, **arguments: Any) -> HostStream:
        """Return an iterator over the results of another tool that streams, for ``for`` or ``async for``.

        >>> for frame in context.stream_tool("frames", path="a.mp4"):  # doctest: +SKIP
        ...     print(frame)

        The first step makes the call, and raises its errors as :meth:`call_tool` does.
        """
        from snakepit_bridge.host_stream import HostStream

        return HostStream(self._call.stream_tool(_checked.name("name", name), arguments))

    def stream_host_tool(self, name: str, /, **arguments: Any) -> HostStream:
        """Return an iterator over the results of a host tool that streams, for ``for`` or ``async for``.

        >>> for price in context.stream_host_tool("prices", item="tea"):  # doctest: +SKIP
        ...     print(price)

        The first step makes the call, and raises its errors as :meth:`call_host_tool` does.
        """
        from snakepit_bridge.host_stream import HostStream

        return HostStream(self._call.stream_host_tool(_checked.name("name", name), arguments))

    @property
    def programs(self) -> Programs:
        """The programs of the session: named blobs, such as trained models, that the host stores."""
        if not self._call.session_id:
            raise InvalidArgumentError(
                "the call has no session, which programs belong to; call the tool with one, or use `global_programs`"
            )
        from snakepit_bridge.programs import Programs

        return Programs(self._call)

    @property
    def global_programs(self) -> GlobalPrograms:
        """The host's own programs, which all sessions share. Calls without a session can use them too."""
        from snakepit_bridge.programs import GlobalPrograms

        return GlobalPrograms(self._call)

    def cleanup(self, force: bool = False) -> bool:
        """Delete the session with its variables and programs. Return whether the host did so."""
        return self._call.cleanup_session(_checked.flag("force", force))

    def __enter__(self) -> Self:
        """Return the context."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Delete the session."""
        self.cleanup()

    # Names of the original Snakepit's Python package.
    elixir_tools = host_tools

    @property
    def request_metadata(self) -> dict[str, str]:
        """The :attr:`metadata` of the call."""
        return self.metadata

    @property
    def stub(self) -> Any:
        """A gRPC stub of the host's bridge service, for messages of the adapter's own protobuf classes."""
        from snakepit_bridge._stub import HostStub, StubCall

        call: Any = self._call
        return call.stub if isinstance(call, StubCall) else HostStub(call)

    def call_elixir_tool(self, tool_name: str, **arguments: Any) -> Any:
        """Call a host tool as :meth:`call_host_tool` does. Accepts the name as a keyword."""
        return self.call_host_tool(tool_name, **arguments)

    def __repr__(self) -> str:
        """Return a representation with the session id."""
        return f"SessionContext(session_id={self.session_id!r})"
