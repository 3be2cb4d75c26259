"""What a worker leaves behind for the call it runs: its output, and Python's stacks should a fatal signal arrive."""

from __future__ import annotations

import io
import os
import sys
from _thread import get_ident

from snakepit_bridge import _owner
from snakepit_bridge._owner import OWNER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from snakepit_bridge import _native

#: What a tool may change about a stream, beside `write_through`.
_SETTINGS = ("encoding", "errors", "line_buffering")

_write = io.BufferedWriter.write


class Output:
    """Tells the runtime what the call that runs prints, and has stacks written where the host finds them.

    Args:
        worker: The native runtime.
    """

    def __init__(self, worker: _native.Worker) -> None:
        self._worker = worker
        self._main = get_ident()
        self._is_changed = self._is_reconfigured = False
        self._streams: list[tuple[_Text, dict[str, Any]]] = []

    def keep(self) -> None:
        """Begin with it."""
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            stream = getattr(sys, name)
            # Without a file behind it there is nothing to read for a host.
            if not isinstance(stream, io.TextIOWrapper):
                continue
            stream.flush()
            raw = io.FileIO(descriptor, "wb", closefd=False)
            raw.name = stream.name
            kept = _Text(
                _Buffer(raw, self, is_unbuffered=isinstance(stream.buffer, io.RawIOBase)),
                encoding=stream.encoding,
                errors=stream.errors,
                # Prints reach the host line by line, not whenever a buffer is full.
                line_buffering=True,
                # Text that waits in here would become the next call's.
                write_through=True,
            )
            setattr(sys, name, kept)
            setattr(sys, f"__{name}__", kept)
            self._streams.append((kept, {}))
        _keep_stacks(self._worker)

    def remember(self) -> None:
        """Take the settings of the streams for those that calls are to find."""
        self._streams = [(stream, _settings(stream)) for stream, _ in self._streams]

    def settle(self) -> None:
        """Write what a call has left unwritten, and put the settings of the streams back."""
        if not self._is_changed:
            return
        self._is_changed = False
        for stream, settings in self._streams:
            try:
                stream.flush()
                if self._is_reconfigured and settings != _settings(stream):
                    stream.reconfigure(**settings)
            except (OSError, ValueError):
                # It was closed below. What waits has nowhere to go.
                pass
        self._is_reconfigured = False

    def wrote(self, data: bytes) -> None:
        """Note what was written into a stream."""
        # Other threads may work for earlier calls, and so may callbacks. A fork is kept apart by the runtime.
        if OWNER.get() is _owner.running and get_ident() == self._main:
            self._worker.note_output(data)
        if not self._is_changed:
            self._is_changed = True
            self._worker.unsettle()

    def reconfigured(self) -> None:
        """Note that a stream has other settings."""
        self._is_changed = self._is_reconfigured = True
        self._worker.unsettle()


class _Buffer(io.BufferedWriter):
    """The bytes of a standard stream. It cannot be closed: a tool that wraps it would close it with the wrapper."""

    def __init__(self, raw: io.RawIOBase, output: Output, *, is_unbuffered: bool) -> None:
        super().__init__(raw)
        self.output = output
        self._is_unbuffered = is_unbuffered

    def write(self, data: Any, /) -> int:
        written = _write(self, data)
        self.output.wrote(data if type(data) is bytes else bytes(memoryview(data)))
        if self._is_unbuffered:
            self.flush()
        return written

    def close(self) -> None:
        self.flush()

    def detach(self) -> Any:
        self.flush()
        return self.raw


class _Text(io.TextIOWrapper):
    """A standard stream, which no tool can take from the others."""

    def reconfigure(self, **settings: Any) -> None:
        settings["write_through"] = True
        super().reconfigure(**settings)
        buffer: Any = self.buffer
        buffer.output.reconfigured()

    def detach(self) -> Any:
        self.flush()
        return self.buffer


def _settings(stream: io.TextIOWrapper) -> dict[str, Any]:
    return {name: getattr(stream, name) for name in _SETTINGS}


def _keep_stacks(worker: _native.Worker) -> None:
    descriptor = worker.open_stacks()
    if descriptor is None:
        return
    import faulthandler

    was_enabled = faulthandler.is_enabled()
    faulthandler.enable(file=descriptor)

    def in_child() -> None:
        # The stacks of a fork are none of the worker's. It has what Python itself would have given it.
        faulthandler.disable()
        if was_enabled:
            faulthandler.enable()

    os.register_at_fork(after_in_child=in_child)
