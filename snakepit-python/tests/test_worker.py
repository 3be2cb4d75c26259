"""The worker as a process: readiness signals, errors at startup, and exit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SHOWCASE = "snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter"


def start(*args: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "snakepit_bridge.worker", *args],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_worker_prints_its_port_serves_and_stops_on_sigterm() -> None:
    with start("--adapter", SHOWCASE, "--port", "0") as worker:
        assert worker.stdout is not None
        line = worker.stdout.readline().strip()
        assert line.startswith("GRPC_READY:")
        socket.create_connection(("127.0.0.1", int(line.removeprefix("GRPC_READY:"))), timeout=5).close()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=10) == 0


def test_the_ready_file_appears_with_its_content(tmp_path: Path) -> None:
    ready = tmp_path / "port"
    with start("--adapter", SHOWCASE, env={"SNAKEPIT_READY_FILE": str(ready)}) as worker:
        while not ready.exists():
            assert worker.poll() is None
        assert int(ready.read_text()) > 0
        worker.terminate()
        assert worker.wait(timeout=10) == 0


@pytest.mark.parametrize(
    ("adapter", "needles"),
    [
        ("no.such.module:Adapter", ["no.such.module:Adapter", "PYTHONPATH"]),
        (
            "snakepit_bridge.testing:Nothing",
            ["module `snakepit_bridge.testing` has no attribute `Nothing`", "defines", "`ToolTester`"],
        ),
        ("snakepit_bridge.testing:ToolTester.nothing", ["`ToolTester` has no attribute `nothing`"]),
        ("snakepit_bridge.testing:__name__", ["is neither a class nor a function, but of type `str`", "`ToolTester`"]),
        ("some/shop.py:Shop", ["does not exist: there is no file `", "/some/shop.py`"]),
        ("some/shop:Shop", ["does not name a module", "path/to/file.py"]),
        ("nodots", ["adapter `nodots` cannot be imported: No module named 'nodots'"]),
    ],
)
def test_a_worker_with_an_unusable_adapter_prints_one_line_and_exits_with_1(adapter: str, needles: list[str]) -> None:
    with start("--adapter", adapter) as worker:
        _, stderr = worker.communicate(timeout=30)
        assert worker.returncode == 1
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for needle in needles:
        assert needle in last


def test_a_worker_whose_port_is_in_use_prints_one_line_and_exits_with_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with start("--adapter", SHOWCASE, "--port", str(port)) as worker:
            _, stderr = worker.communicate(timeout=30)
            assert worker.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in stderr


def test_a_failing_process_init_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cold.py").write_text(
        "from snakepit_bridge import BaseAdapter, tool\n"
        "class Cold(BaseAdapter):\n"
        "    @staticmethod\n"
        "    def process_init():\n"
        "        raise OSError('no weights')\n"
        "    @tool\n"
        "    def f(self): ...\n"
    )
    with start("--adapter", "cold:Cold", env={"PYTHONPATH": str(tmp_path)}) as worker:
        _, stderr = worker.communicate(timeout=30)
        assert worker.returncode == 1
    assert "process_init of adapter `Cold` failed: OSError: no weights" in stderr


def test_a_worker_exits_when_its_host_closes_the_lifeline() -> None:
    ours, theirs = socket.socketpair()
    worker = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "snakepit_bridge.worker", "--adapter", SHOWCASE],
        env={**os.environ, "SNAKEPIT_CONTROL": "stdin"},
        stdin=theirs.fileno(),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    theirs.close()
    with ours, ours.makefile() as lines, worker:
        assert '"ready"' in lines.readline()
        ours.shutdown(socket.SHUT_RDWR)
        assert worker.wait(timeout=10) == -signal.SIGKILL
