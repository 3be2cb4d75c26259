"""Records a worker's output and stacks for the error of a call that kills the worker."""

from __future__ import annotations

import io
import os
import sys
from _thread import get_ident

from snakepit_bridge import _owner
from snakepit_bridge._owner import OWNER, CallOwner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from snakepit_bridge import _native

#: The settings of a stream that a tool may change. `write_through` stays on.
_SETTINGS = ("encoding", "errors", "line_buffering")

_write = io.BufferedWriter.write


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
                _Buffer(raw, self, is_unbuffered=isinstance(stream.buffer, io.RawIOBase)),
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
        _enable_fault_handler(self._worker)

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
                if self._is_reconfigured and settings != _settings(stream):
                    stream.reconfigure(**settings)
            except (OSError, ValueError):
                # The descriptor was closed, so the buffered output is lost.
                pass
        self._is_reconfigured = False

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

    def __init__(self, raw: io.RawIOBase, output: Output, *, is_unbuffered: bool) -> None:
        super().__init__(raw)
        self.output = output
        self._is_unbuffered = is_unbuffered

    def write(self, data: Any, /) -> int:
        written = _write(self, data)
        self.output.record(data if type(data) is bytes else bytes(memoryview(data)))
        if self._is_unbuffered:
            self.flush()
        return written

    def close(self) -> None:
        self.flush()

    def detach(self) -> Any:
        self.flush()
        return self.raw


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
