"""Attributes a worker's output to its calls.

Output goes to the host immediately, in frames that name the call. The output of the running call is also recorded in a
file, with the stacks, for the error of a call that kills the worker.
"""

from __future__ import annotations

import io
import os
import sys
from _thread import RLock, get_ident

from snakepit_bridge import _current, _owner, _subprocesses
from snakepit_bridge._imports import on_import
from snakepit_bridge._owner import OWNER, CallOwner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from snakepit_bridge import _native
    from snakepit_bridge.session_context import SessionContext

#: The settings of a stream that a tool may change. `write_through` stays on.
_SETTINGS = ("encoding", "errors", "line_buffering")

_write = io.BufferedWriter.write
_flush = io.BufferedWriter.flush

#: The size from which an unfinished line is sent, in bytes.
_MAX_PENDING = 4096


class Output:
    """Records the output of the running call, and directs Python's fault handler to a file that the host reads.

    Args:
        worker: The native runtime.
    """

    def __init__(self, worker: _native.Worker) -> None:
        self._worker = worker
        self._main = get_ident()
        self._is_changed = self._is_reconfigured = False
        self._streams: list[tuple[_Text, dict[str, Any]]] = []
        #: Whether the host attributes output to calls.
        self.has_frames = worker.has_frames
        #: The level and logger name of the record that a `logging` handler writes now, by thread.
        self.records: dict[int, tuple[int, str]] = {}
        #: The calls whose output has an unfinished line, or that started programs, by the id of the object.
        self._unfinished: dict[int, Any] = {}
        #: The calls to which output of forks and native code belongs, by the id of the object.
        self._begun: set[int] = set()

    def install(self) -> None:
        """Replace the standard streams."""
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            stream = getattr(sys, name)
            # Streams without a descriptor do not reach the host.
            if not isinstance(stream, io.TextIOWrapper):
                continue
            stream.flush()
            raw = io.FileIO(descriptor, "wb", closefd=False)
            raw.name = stream.name
            replacement = _Text(
                _Buffer(raw, self, descriptor - 1, is_unbuffered=isinstance(stream.buffer, io.RawIOBase)),
                encoding=stream.encoding,
                errors=stream.errors,
                # Output reaches the host line by line.
                line_buffering=True,
                # Buffered text would be attributed to the next call.
                write_through=True,
            )
            setattr(sys, name, replacement)
            setattr(sys, f"__{name}__", replacement)
            self._streams.append((replacement, {}))
            if descriptor == 1 and not replacement.buffer.is_unbuffered:  # type: ignore[attr-defined]
                self._worker.buffer_native_lines()
        _enable_fault_handler(self._worker)
        if self.has_frames:
            on_import("logging", self._watch_logging)
            _subprocesses.install(self)

    def flush(self) -> None:
        """Send the output that the streams still hold."""
        for stream, _ in self._streams:
            buffer: Any = stream.buffer
            try:
                stream.flush()
                buffer.flush_all()
            except (OSError, ValueError):
                # The descriptor was closed, so the buffered output is lost.
                continue

    def remember(self) -> None:
        """Record the current settings of the streams as those to restore after calls."""
        self._streams = [(stream, _settings(stream)) for stream, _ in self._streams]

    def restore(self) -> None:
        """Flush the streams, and restore the settings that a call changed."""
        if not self._is_changed:
            return
        self._is_changed = False
        for stream, settings in self._streams:
            try:
                stream.flush()
                buffer: Any = stream.buffer
                buffer.flush_all()
                if self._is_reconfigured and settings != _settings(stream):
                    stream.reconfigure(**settings)
            except (OSError, ValueError):
                # The descriptor was closed, so the buffered output is lost.
                pass
        self._is_reconfigured = False
        # Threads of earlier calls may add more.
        for key in list(self._unfinished):
            self._begun.discard(key)
            self._worker.end_output(self._unfinished.pop(key))

    def end(self, context: SessionContext) -> None:
        """Send the unfinished lines of a call that has ended, while other calls run."""
        for stream, _ in self._streams:
            buffer: Any = stream.buffer
            buffer.flush_of(context)
        call: Any = context._call
        if self._unfinished.pop(id(call), None) is not None:
            self._begun.discard(id(call))
            self._worker.end_output(call)

    def send(self, stream: int, context: SessionContext | None, record: tuple[int, str], data: bytes) -> bool:
        """Send output to the host. Return ``False`` if a tool has redirected the stream."""
        call: Any = None if context is None else context._call
        if not self._worker.write_output(stream, call, *record, data):
            return False
        if call is not None and not data.endswith(b"\n"):
            self._end_later(call)
        return True

    def _end_later(self, call: Any) -> None:
        self._unfinished[id(call)] = call
        self._is_changed = True
        self._worker.request_restore()

    def _watch_logging(self, module: ModuleType) -> None:
        """Attach the level and the name of the logger to the output of handlers."""
        handler: Any = getattr(module, "Handler", None)
        if handler is None:
            # A module of the program with this name.
            return
        handle, records = handler.handle, self.records

        def handle_with_level(self: Any, record: Any) -> Any:
            ident = get_ident()
            outer = records.get(ident)
            records[ident] = (record.levelno, record.name)
            try:
                return handle(self, record)
            finally:
                if outer is None:
                    del records[ident]
                else:
                    records[ident] = outer

        handler.handle = handle_with_level
        # Without a configuration, `logging` ignores the levels of the loggers and only prints warnings and errors.
        last_resort: Any = getattr(module, "lastResort", None)
        if last_resort is not None:
            last_resort.setLevel(0)

    def open_pipe(self, stream: int) -> int | None:
        """Open a pipe for a program of the running call. Return ``None`` if it inherits the stream of the worker."""
        context = _current.find()
        call: Any = None if context is None else context._call
        if call is None:
            return None
        descriptor = self._worker.open_program_pipe(stream, call)
        if descriptor is not None and id(call) not in self._unfinished:
            self._end_later(call)
        return descriptor

    def begin_program(self) -> None:
        """Attribute the output of forks, and of programs that inherit a stream of the worker, to the running call."""
        # If calls run concurrently, such output belongs to the worker.
        if getattr(OWNER.get(), "context", None) is not None:
            return
        context = _current.find()
        call: Any = None if context is None else context._call
        if call is not None and id(call) not in self._begun:
            self._begun.add(id(call))
            self._worker.begin_output(call)
            self._end_later(call)

    def forward_programs(self) -> None:
        """Forward the output that programs have written until now."""
        self._worker.forward_programs()

    def record(self, data: bytes) -> None:
        """Record data that was written to a stream."""
        owner = OWNER.get()
        if type(owner) is CallOwner:
            self._worker.note_output_of(owner.call.id, data)
        # Other threads and callbacks may belong to earlier calls. The runtime ignores forks.
        elif owner is _owner.running and get_ident() == self._main:
            self._worker.note_output(data)
        if not self._is_changed:
            self._is_changed = True
            self._worker.request_restore()

    def record_reconfiguration(self) -> None:
        """Record that the settings of a stream have changed."""
        self._is_changed = self._is_reconfigured = True
        self._worker.request_restore()


class _Buffer(io.BufferedWriter):
    """The binary layer of a standard stream.

    It cannot be closed, because closing a wrapper around it would close it, too.
    """

    def __init__(self, raw: io.RawIOBase, output: Output, index: int, *, is_unbuffered: bool) -> None:
        super().__init__(raw)
        self.output = output
        self._index = index
        self.is_unbuffered = is_unbuffered
        #: The unfinished lines of calls, by thread.
        self._pending: dict[int, _Unfinished] = {}
        self._lock = RLock()
        os.register_at_fork(after_in_child=self._reset)

    def write(self, data: Any, /) -> int:
        output = self.output
        data = data if type(data) is bytes else bytes(memoryview(data))
        if output.has_frames:
            context = _current.find()
            record = output.records.get(get_ident(), _NO_RECORD)
            if context is not None or record is not _NO_RECORD:
                self._write_for(context, record, data)
                output.record(data)
                return len(data)
            if self._pending:
                self._send(get_ident())
        written = _write(self, data)
        output.record(data)
        if self.is_unbuffered:
            self.flush()
        return written

    def flush(self) -> None:
        if self._pending:
            self._send(get_ident())
        _flush(self)

    def flush_all(self) -> None:
        """Send the unfinished lines of all threads."""
        for thread in list(self._pending):
            self._send(thread)
        _flush(self)

    def flush_of(self, context: SessionContext) -> None:
        """Send the unfinished lines of a call."""
        for thread, line in list(self._pending.items()):
            if line.context is context:
                self._send(thread)

    def close(self) -> None:
        self.flush()

    def detach(self) -> Any:
        self.flush()
        return self.raw

    def _write_for(self, context: SessionContext | None, record: tuple[int, str], data: bytes) -> None:
        thread = get_ident()
        with self._lock:
            line = self._pending.get(thread)
            if line is not None and (line.context is not context or line.record != record):
                self._send(thread)
                line = None
            if line is None:
                line = self._pending[thread] = _Unfinished(context, record)
            line.data += data
            # An unbuffered stream sends complete lines, because threads of a call would mix parts of them.
            if (self.is_unbuffered and data.endswith(b"\n")) or len(line.data) > _MAX_PENDING:
                self._send(thread)

    def _send(self, thread: int) -> None:
        with self._lock:
            line = self._pending.pop(thread, None)
            if line is None:
                return
            # Output that was written before.
            _flush(self)
            data = bytes(line.data)
            if not self.output.send(self._index, line.context, line.record, data):
                _write(self, data)
                _flush(self)

    def _reset(self) -> None:
        # In a fork. Its parent sends the unfinished lines.
        self._lock = RLock()
        self._pending.clear()


class _Unfinished:
    """The unfinished line of one thread, and the call and record that it belongs to."""

    __slots__ = ("context", "data", "record")

    def __init__(self, context: SessionContext | None, record: tuple[int, str]) -> None:
        self.context = context
        self.record = record
        self.data = bytearray()


#: The level and logger of output that no handler of `logging` writes.
_NO_RECORD = (0, "")


class _Text(io.TextIOWrapper):
    """A standard stream that tools cannot close or detach."""

    def reconfigure(self, **settings: Any) -> None:
        settings["write_through"] = True
        super().reconfigure(**settings)
        buffer: Any = self.buffer
        buffer.output.record_reconfiguration()

    def detach(self) -> Any:
        self.flush()
        return self.buffer


def _settings(stream: io.TextIOWrapper) -> dict[str, Any]:
    return {name: getattr(stream, name) for name in _SETTINGS}


def _enable_fault_handler(worker: _native.Worker) -> None:
    descriptor = worker.open_stacks()
    if descriptor is None:
        return
    import faulthandler

    was_enabled = faulthandler.is_enabled()
    faulthandler.enable(file=descriptor)

    def in_child() -> None:
        # A fork must not write into the worker's file. It gets Python's default.
        faulthandler.disable()
        if was_enabled:
            faulthandler.enable()

    os.register_at_fork(after_in_child=in_child)
