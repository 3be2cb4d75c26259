"""Connects the standard streams of a worker to those of ``snakepit dev --debug``, which started the worker."""

from __future__ import annotations

import contextlib
import io
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

#: The suffix of the socket of the input, as in `terminal.rs` of the command line.
_INPUT_SUFFIX = ".input"


class Terminal(io.TextIOBase):
    """Writes text to the terminal of ``snakepit dev``.

    It is no ``TextIOWrapper``, so the runtime does not attribute its text to calls.

    Args:
        connection: The connection to ``snakepit dev``.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of terminals."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """The treatment of text without an encoding."""
        return "backslashreplace"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        try:
            self._connection.sendall(text.encode(self.encoding, self.errors))
        except OSError:
            # The command has ended, and this process is about to.
            return len(text)
        return len(text)

    def writelines(self, lines: Iterable[str], /) -> None:  # type: ignore[override]
        self.write("".join(lines))


class TerminalInput(io.RawIOBase):
    """Reads from the terminal of ``snakepit dev``.

    Each read requests one line. The command answers the requests of one connection at a time, and a call keeps its
    connection, so that no other worker receives the answers to its prompts.

    Args:
        path: The socket of the input.
        request_restore: Makes the runtime call :meth:`end_call` when the running call ends.
    """

    def __init__(self, path: str, request_restore: Callable[[], None]) -> None:
        self._path = path
        self._request_restore = request_restore
        self._connection: socket.socket | None = None
        self._is_reading = False
        self._is_dropping = False
        #: The file object that reads from this one.
        self.file: io.TextIOWrapper | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self._is_dropping:
            return 0
        self._request_restore()
        self._is_reading = True
        count = 0
        try:
            if self._connection is None:
                self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._connection.connect(self._path)
            self._connection.sendall(b"r")
            count = self._connection.recv_into(buffer)
        except OSError:
            # The command has ended, and this process is about to.
            return 0
        finally:
            self._is_reading = False
            # The end of the input, or a call that was cancelled.
            if count == 0:
                self.release()
        return count

    def end_call(self) -> None:
        """Drop the rest of a line of which the call read a part, and let other workers read.

        Has no effect while another thread reads.
        """
        if self._connection is None or self._is_reading:
            return
        # Adapters and debuggers may keep the file object, so its buffers are read to their end instead of replaced.
        self._is_dropping = True
        try:
            # A tool may have detached the file object.
            with contextlib.suppress(ValueError):
                if self.file is not None:
                    self.file.read()
        finally:
            self._is_dropping = False
        self.release()

    def release(self) -> None:
        """Let other workers read. Has no effect while another thread reads."""
        connection = self._connection
        if connection is None or self._is_reading:
            return
        self._connection = None
        # A fork may have a copy.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def close(self) -> None:
        """Let other workers read. A tool cannot close the standard input of its worker."""
        self.release()


def connect(path: str, request_restore: Callable[[], None]) -> TerminalInput:
    """Replace the standard streams, so that ``breakpoint()`` and ``input()`` use the terminal.

    Args:
        path: The socket of the output of ``snakepit dev``.
        request_restore: Makes the runtime call :meth:`TerminalInput.end_call` when the running call ends.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    terminal_input = TerminalInput(path + _INPUT_SUFFIX, request_restore)
    stdin = io.TextIOWrapper(io.BufferedReader(terminal_input), encoding="utf-8", errors="replace")
    terminal_input.file = stdin
    sys.stdin = sys.__stdin__ = stdin  # type: ignore[misc]
    terminal = Terminal(connection)
    sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = terminal  # type: ignore[assignment,misc]
    return terminal_input
