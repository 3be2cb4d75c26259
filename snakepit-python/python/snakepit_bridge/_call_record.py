"""Records the progress and the output of a tester's calls."""

from __future__ import annotations

import logging
import sys
import threading
from _thread import get_ident
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _current
from snakepit_bridge.reports import LogLine, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Literal, TypeVar

    _T = TypeVar("_T")


@dataclass
class CallRecord:
    """The progress and the output of one tester call, in chronological order."""

    #: The name of the tool.
    tool: str
    #: All reports of progress. A host passes on about twenty a second.
    progress: list[Progress] = field(default_factory=list)
    #: The lines of ``print``, ``warnings`` and ``logging`` of the tool, its threads and its tasks, and of the calls
    #: that it makes to other tools. Programs that it starts are missing.
    logs: list[LogLine] = field(default_factory=list)

    def __post_init__(self) -> None:
        #: The record of the call that made this one.
        self._outer: CallRecord | None = None
        #: The unfinished lines, by stream and thread.
        self._unfinished: dict[tuple[str, int], str] = {}

    def _write(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        key = (stream, get_ident())
        *lines, rest = (self._unfinished.pop(key, "") + text).split("\n")
        if rest:
            self._unfinished[key] = rest
        for line in lines:
            self._add(line, stream)

    def _add(self, line: str, stream: Literal["stdout", "stderr"], level: int = 0, logger: str = "") -> None:
        # The last state of a progress bar.
        line = line.rstrip("\r").rpartition("\r")[2]
        self._append(LogLine(line, stream, level, logger, datetime.now(UTC)))

    def _append(self, line: LogLine) -> None:
        record: CallRecord | None = self
        while record is not None:
            record.logs.append(line)
            record = record._outer

    def _end(self) -> None:
        for key in list(self._unfinished):
            self._add(self._unfinished.pop(key), "stdout" if key[0] == "stdout" else "stderr")


class _Tee:
    """A standard stream that also records what the code of a call writes."""

    def __init__(self, stream: Any, name: Literal["stdout", "stderr"]) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> Any:
        record = _running()
        if record is not None and get_ident() not in _logging:
            record._write(self._name, text)
        return self._stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    @property
    def buffer(self) -> Any:
        return _TeeBuffer(self._stream.buffer, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _TeeBuffer:
    """The binary layer of such a stream."""

    def __init__(self, buffer: Any, tee: _Tee) -> None:
        self._buffer = buffer
        self._tee = tee

    def write(self, data: Any) -> Any:
        record = _running()
        if record is not None:
            record._write(self._tee._name, bytes(data).decode(errors="replace"))
        return self._buffer.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)


#: The threads in which handlers of `logging` run. The record of the logger is recorded instead of their output.
_logging: set[int] = set()
_lock = threading.Lock()
#: The number of calls that are recorded now, and the streams and the function that they replace.
_count = 0
_replaced: tuple[_Tee, _Tee, Any, Any]
_format = logging.Formatter().format


#: The record of the call that makes the next one.
_outer: ContextVar[CallRecord | None] = ContextVar("snakepit_outer_record", default=None)


def new(tool: str) -> CallRecord:
    """Create a call record."""
    record = CallRecord(tool)
    record._outer = _outer.get()
    return record


def nested(outer: CallRecord | None, call: Callable[..., _T], *args: Any) -> _T:
    """Make a call whose output also belongs to another one."""
    token = _outer.set(outer)
    try:
        return call(*args)
    finally:
        _outer.reset(token)


@contextmanager
def recording(record: CallRecord) -> Iterator[None]:
    """Record the output of a call."""
    global _count
    with _lock:
        _count += 1
        if _count == 1:
            _install()
    try:
        yield
    finally:
        record._end()
        with _lock:
            _count -= 1
            if _count == 0:
                _restore()


def _install() -> None:
    global _replaced
    call_handlers = logging.Logger.callHandlers
    tees = _Tee(sys.stdout, "stdout"), _Tee(sys.stderr, "stderr")

    def record_and_call(self: logging.Logger, record: logging.LogRecord) -> None:
        running = _running()
        ident = get_ident()
        if running is None or ident in _logging:
            call_handlers(self, record)
            return
        for line in _format(record).split("\n"):
            running._add(line, "stderr", record.levelno, record.name)
        _logging.add(ident)
        try:
            call_handlers(self, record)
        finally:
            _logging.discard(ident)

    _replaced = (*tees, record_and_call, call_handlers)
    sys.stdout, sys.stderr = tees
    logging.Logger.callHandlers = record_and_call  # type: ignore[method-assign]


def _restore() -> None:
    """Restore what no other code has replaced since."""
    stdout, stderr, record_and_call, call_handlers = _replaced
    for tee in (stdout, stderr):
        if getattr(sys, tee._name) is tee:
            setattr(sys, tee._name, tee._stream)
    if logging.Logger.callHandlers is record_and_call:
        logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]


def _running() -> CallRecord | None:
    """Return the record of the call whose code runs."""
    context = _current.find()
    if context is None:
        return None
    record: CallRecord | None = getattr(context._call, "record", None)
    return record
