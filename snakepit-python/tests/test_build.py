"""The build backend."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def test_a_build_waits_while_another_command_uses_the_target_directory(tmp_path: Path) -> None:
    code = "import sys, snakepit_build; snakepit_build.build_wheel(sys.argv[1])"
    environment = {
        **os.environ,
        "CARGO_TARGET_DIR": str(tmp_path / "target"),
        # maturin rejects it after the build has the lock.
        "MATURIN_PEP517_ARGS": "--target no-such-target",
        "PYTHONPATH": str(PACKAGE / "backend"),
    }
    (tmp_path / "target").mkdir()
    with (tmp_path / "target" / "maturin.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", code, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with build:
            try:
                assert build.stdout is not None
                first = build.stdout.readline()
                assert "Waiting for another build" in first, first
                assert build.poll() is None
                fcntl.flock(lock, fcntl.LOCK_UN)
                rest, _ = build.communicate(timeout=60)
            finally:
                build.kill()
    assert build.returncode != 0
    assert "no-such-target" in rest, rest
