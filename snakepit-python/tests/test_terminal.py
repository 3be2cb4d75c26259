"""The progress bar of the command line, on a real terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from typing import Any

import pytest

from snakepit_bridge._launch import find_binary
from snakepit_bridge.testing import Daemon

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of Unix")


def on_terminal(daemon: Daemon, *arguments: str) -> str:
    """Run a command with a terminal as its standard error. Return all text that the terminal received."""
    terminal, end = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                part = os.read(terminal, 4096)
            except OSError:  # The command has closed the terminal.
                return
            if not part:
                return
            shown.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    environment = {**os.environ, "SNAKEPIT_SERVER": daemon.address}
    try:
        with subprocess.Popen(  # noqa: S603
            [find_binary(), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=end,
        ) as command:
            os.close(end)
            assert command.wait(60) == 0
    finally:
        reader.join(60)
        os.close(terminal)
    return b"".join(shown).decode()


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after this text."""
    lines, line, column = [], "", 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.", text, re.DOTALL):
        if part == "\x1b[2K":
            line = ""
        elif part == "\r":
            column = 0
        elif part == "\n":
            lines.append(line)
            line, column = "", 0
        elif not part.startswith("\x1b"):
            line = line[:column].ljust(column) + part + line[column + 1 :]
            column += 1
    return [shown.rstrip() for shown in (*lines, line)]


def arguments_of(**arguments: Any) -> tuple[str, str]:
    return "--args", json.dumps(arguments)


def test_a_terminal_shows_a_bar_until_the_call_ends() -> None:
    with Daemon("reporting:Reporting", workers=1) as daemon:
        shown = on_terminal(daemon, "call", "train", *arguments_of(steps=4, pause=0.1))
        for bar in ("[######------------------]  25 % step 1", "[########################] 100 % step 4"):
            assert bar in shown
            assert screen(shown[: shown.index(bar) + len(bar)]) == [bar]
        assert screen(shown) == [""]
        # Lines of output appear above the bar.
        shown = on_terminal(daemon, "stream", "count", *arguments_of(n=3), "--logs")
        assert "100 %" in shown
        assert screen(shown) == ["item 0", "item 1", "item 2", ""]
