"""The build backend."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.parent

#: Files that users and tools leave in a checkout.
FOREIGN = [
    ".env",
    ".idea/workspace.xml",
    ".venv/lib/module.py",
    "PKG-INFO",
    "docs/.pytest_cache/README.md",
    "models/weights.bin",
    "notes.txt",
    "secrets.toml",
    "snakepit-python/dist/snakepit_bridge.toml",
    "snakepit-python/python/snakepit_bridge/__pycache__/client.txt",
    "snakepit-python/python/snakepit_bridge/_native.abi3.so",
    "snakepit-server/cli/key.pem",
    "target/debug/build/main.rs",
    "tests/adapters/.env",
]


def test_a_source_distribution_without_git_has_the_files_of_the_workspace_only(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("compares with git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True)  # noqa: S607
    tracked = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    checkout = tmp_path / "checkout"
    for name in tracked:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    for name in FOREIGN:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("foreign")
    code = (
        "import pathlib, sys, snakepit_build; "
        "snakepit_build.write_sdist(pathlib.Path(sys.argv[1]), 'name-1', b'metadata')"
    )
    archive = tmp_path / "name-1.tar.gz"
    environment = {**os.environ, "PYTHONPATH": str(checkout / "snakepit-python" / "backend")}
    subprocess.run([sys.executable, "-c", code, str(archive)], env=environment, check=True)  # noqa: S603
    with tarfile.open(archive) as tar:
        packed = {name.removeprefix("name-1/") for name in tar.getnames()}
    assert packed == {*tracked, "PKG-INFO"}


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
