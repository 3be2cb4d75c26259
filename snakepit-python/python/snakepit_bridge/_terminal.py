"""Connects the standard streams of a worker to those of ``snakepit dev --debug``, which started the worker."""

from __future__ import annotations

import io
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


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


def connect(path: str) -> None:
    """Replace the standard streams, so that ``breakpoint()`` and ``input()`` use the terminal.

    Args:
        path: The socket of ``snakepit dev``.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    sys.stdin = sys.__stdin__ = connection.makefile("r", encoding="utf-8", errors="replace")  # type: ignore[misc]
    terminal = Terminal(connection)
    sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = terminal  # type: ignore[assignment,misc]
