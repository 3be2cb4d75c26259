"""The standard input of a worker of ``snakepit dev --debug``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snakepit_bridge._launch import find_binary

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs sockets of Unix")

ADAPTER = """
import sys

def part() -> str:
    return sys.stdin.read(1)

def part_of_bytes() -> str:
    return sys.stdin.buffer.read(1).decode()

def ask() -> str:
    return input()
"""


def test_the_next_call_does_not_read_the_rest_of_a_line(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(ADAPTER)
    binary = str(find_binary())
    command = [binary, "dev", "--debug", "--listen", "127.0.0.1:0", "--run-dir", "run", "--python", sys.executable]
    with subprocess.Popen(  # noqa: S603
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as dev:
        try:
            assert dev.stdin is not None
            assert dev.stdout is not None
            server = json.loads(dev.stdout.readline())["grpc"]
            dev.stdin.write("Ada\nBob\nCäsar\nDora\n".encode())
            dev.stdin.flush()
            for tool, expected in [("part", "A"), ("ask", "Bob"), ("part_of_bytes", "C"), ("ask", "Dora")]:
                called = subprocess.run(  # noqa: S603
                    [binary, "call", tool, "--server", server], capture_output=True, timeout=60
                )
                assert json.loads(called.stdout) == expected, (tool, called)
        finally:
            dev.send_signal(signal.SIGINT)
            assert dev.wait(60) == 0
