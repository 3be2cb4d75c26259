"""The files of ``snakepit stubs --output``: links, permissions and interrupted writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from snakepit_bridge import _stubs

WRITER = """
import sys
from pathlib import Path
from snakepit_bridge._stubs import _write

sys.exit(_write("x" * 80_000_000, Path(sys.argv[1])))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
def test_a_signal_during_the_write_leaves_no_temporary_file(tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    file = tmp_path / "tools.py"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stderr=subprocess.DEVNULL) as writer:  # noqa: S603
        while not (found := list(tmp_path.iterdir())) and writer.poll() is None:
            pass
        assert found, writer.returncode
        writer.send_signal(number)
        # The writer may have ended before the signal arrives.
        assert writer.wait(60) in (-number, 0)
    assert list(tmp_path.iterdir()) == [file]
    assert file.stat().st_size == 80_000_000


def test_hard_links_symbolic_links_and_permissions_stay(tmp_path: Path) -> None:
    file, hard, link = tmp_path / "tools.py", tmp_path / "hard", tmp_path / "link"
    file.write_text("a longer old text")
    hard.hardlink_to(file)
    assert _stubs._write("new", file) == 0
    assert hard.read_text() == file.read_text() == "new"
    hard.unlink()
    file.chmod(0o640)
    link.symlink_to(file)
    assert _stubs._write("newer", link) == 0
    assert (link.is_symlink(), file.read_text(), file.stat().st_mode & 0o777) == (True, "newer", 0o640)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "absent")
    assert _stubs._write("text", dangling) == 0
    assert (dangling.is_symlink(), (tmp_path / "absent").read_text()) == (True, "text")


def test_protected_files_stay() -> None:
    # Not below `tmp_path`, whose parents are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o777)
        user = os.geteuid() or 65534
        file = directory / "tools.py"
        file.write_text("old")
        os.chown(file, user, -1)
        file.chmod(0o444)
        before = os.geteuid()
        os.seteuid(user)  # Root may write every file.
        try:
            assert _stubs._write("new", file) == 6
        finally:
            os.seteuid(before)
        assert file.read_text() == "old"
        assert os.listdir(directory) == ["tools.py"]  # noqa: PTH208
