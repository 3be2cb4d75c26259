"""A call without a host, for tests: functions, dicts and a session of this process replace the host."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _arguments, _native
from snakepit_bridge.errors import HostToolError, NotFoundError, ProgramNotFoundError, ToolError, ToolFailed
from snakepit_bridge.reports import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from snakepit_bridge._call import HostStreamLike, PendingLike, VariablesLike
    from snakepit_bridge._call_record import CallRecord
    from snakepit_bridge.testing import ToolTester


class LocalCall:
    """A call without a host. Uses functions, dicts, and a session in this process instead."""

    def __init__(self, call: _native.Call, tester: ToolTester, record: CallRecord | None) -> None:
        self.session_id = call.session_id
        self.request_id = call.request_id
        self.tool = call.tool
        self.worker_id = call.worker_id
        self.metadata = tester._metadata
        self.traceparent = None
        self.tracestate = None
        self._call = call
        self._host_tools = tester._host_tools
        self._programs = (tester.programs, tester.global_programs)
        self._session = tester._session
        self._tester = tester
        #: The record of the call. ``None`` outside of calls.
        self.record = record

    @property
    def cancelled(self) -> bool:
        return self._call.cancelled

    def time_remaining(self) -> float | None:
        return self._call.time_remaining()

    def report_progress(self, done: float, total: float | None, message: str) -> None:
        if self.record is not None:
            self.record.progress.append(Progress(done, total, message))

    def host_tools(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "name": name,
                "description": function.__doc__ or "",
                "parameters": [],
                "supports_streaming": inspect.isgeneratorfunction(function),
            }
            for name, function in self._host_tools.items()
        }

    def call_host_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        return _round_trip(self._run_host_tool(name, arguments), f"the result of host tool `{name}`")

    def stream_host_tool(self, name: str, arguments: dict[str, Any]) -> HostStreamLike:
        def results() -> Iterator[Any]:
            iterator = iter(self._run_host_tool(name, arguments))
            while True:
                try:
                    result = next(iterator)
                except StopIteration:
                    return
                except HostToolError:
                    raise
                except Exception as error:
                    raise _host_tool_error(name, error) from error
                yield _round_trip(result, f"a result of host tool `{name}`")

        return _LocalStream(results())

    def stream_tool(self, name: str, arguments: dict[str, Any]) -> HostStreamLike:
        if name in self._host_tools:
            return self.stream_host_tool(name, arguments)

        def results() -> Iterator[Any]:
            yield from self._tester._stream_peer(name, arguments, self.record)

        return _LocalStream(results())

    def _run_host_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        sent = {
            key: _round_trip(value, f"argument `{key}` of host tool `{name}`", is_argument=True)
            for key, value in arguments.items()
        }
        if name not in self._host_tools:
            hint = _arguments.did_you_mean(name, self._host_tools, "; {}")
            raise NotFoundError(f"host tool `{name}` not found{hint}; pass the function in `host_tools`")
        try:
            return self._host_tools[name](**sent)
        except HostToolError:
            raise
        except Exception as error:
            raise _host_tool_error(name, error) from error

    def start_host_tool(
        self, name: str, arguments: dict[str, Any], completions: _native.Completions, key: int
    ) -> PendingLike:
        completed = _Completed(self.call_host_tool(name, arguments))
        completions.complete(key)
        return completed

    def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        if name not in self._host_tools:
            return self._tester._call_peer(name, arguments, self.record)
        try:
            return self.call_host_tool(name, arguments)
        except HostToolError as error:
            failed = ToolFailed(error.type_name, str(error), code=error.code, data=error.data)
            raise failed from error

    def start_tool(
        self, name: str, arguments: dict[str, Any], completions: _native.Completions, key: int
    ) -> PendingLike:
        completed = _Completed(self.call_tool(name, arguments))
        completions.complete(key)
        return completed

    def variables(self) -> VariablesLike:
        if self._session is None:
            raise NotFoundError("there is no session")
        return self._session.variables(self._call)

    def put_program(
        self,
        name: str,
        data: bytes | bytearray | memoryview,
        content_type: str,
        metadata: dict[str, str],
        *,
        is_global: bool,
        ttl_seconds: int | None,
    ) -> bool:
        del metadata, ttl_seconds
        programs = self._programs_of(is_global)
        created = name not in programs
        programs[name] = (bytes(data), content_type)
        return created

    def get_program(self, name: str, is_global: bool) -> tuple[bytes, str]:
        programs = self._programs_of(is_global)
        if name not in programs:
            raise ProgramNotFoundError(f"program `{name}` not found")
        return programs[name]

    def get_changed_program(
        self, name: str, is_global: bool, known: tuple[int, int] | None
    ) -> tuple[bytes, str, tuple[int, int]] | None:
        data, content_type = self.get_program(name, is_global)
        version = (hash((data, content_type)), 0)
        return None if version == known else (data, content_type, version)

    def list_programs(self, is_global: bool) -> list[str]:
        return sorted(self._programs_of(is_global))

    def delete_program(self, name: str, is_global: bool) -> None:
        self.get_program(name, is_global)
        del self._programs[is_global][name]

    def _programs_of(self, is_global: bool) -> dict[str, tuple[bytes, str]]:
        if not is_global and self._session is not None:
            self._session.require()
        return self._programs[is_global]

    def cleanup_session(self, force: bool) -> bool:
        del force
        self._programs[False].clear()
        if self._session is not None:
            self._session.end()
        return True


def _host_tool_error(name: str, error: Exception) -> HostToolError:
    """Return the error of a function that replaces a host tool, with the code and data of a `ToolError`."""
    kind = type(error).__name__
    code, data = (error.code, error.data) if isinstance(error, ToolError) else ("", None)
    if data is not None:
        data = _round_trip(data, f"the data of the error of host tool `{name}`")
    return HostToolError(f"{kind}: {error}", name, type_name=kind, code=code, data=data)


class _LocalStream:
    """The results of a function that replaces a host tool."""

    def __init__(self, results: Iterator[Any]) -> None:
        self._results: Iterator[Any] | None = results

    def next(self) -> tuple[Any] | None:
        for result in self._results or ():
            return (result,)
        return None

    def ready(self, completions: _native.Completions, key: int) -> None:
        completions.complete(key)

    def take(self) -> tuple[Any] | None:
        return self.next()

    def close(self) -> None:
        self._results = None


class _Completed:
    """A completed call to a host tool."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        return self._value


def _round_trip(value: Any, description: str, *, is_argument: bool = False) -> Any:
    return _native.decode(*_native.encode(value, description, is_argument=is_argument))
