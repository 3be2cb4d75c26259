"""Installs a wheel into an empty environment, and uses the daemon and the package as a user without Rust would.

Run it by ``python installation.py WHEEL [PYTHON ..]``. It needs no other package, and no network.
"""

from __future__ import annotations

import json
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: The time limit of each command and each wait, in seconds.
LIMIT = 120

SHOP = """
from collections.abc import Iterator
from snakepit_bridge import BaseAdapter, tool, worker_info

class Shop(BaseAdapter):
    @tool
    def price(self, item: str, count: int = 1) -> float:
        return 9.99 * count

    @tool
    def workers(self) -> int:
        return worker_info().count

    @tool
    def receipt(self, items: list[str]) -> Iterator[str]:
        yield from items
"""

#: Defines an adapter and serves it, as the guide for Python users shows.
APP = (
    SHOP
    + """
if __name__ == "__main__":
    from snakepit_bridge import serve
    serve(Shop, workers=2, listen="127.0.0.1:0")
    print("served", flush=True)
"""
)

CLIENT = """
import sys
from snakepit_bridge import Client

with Client(sys.argv[1]) as client:
    assert client.call("price", item="tea", count=2) == 19.98
    assert client.call("workers") == int(sys.argv[2])
    assert list(client.stream("receipt", items=["tea", "milk"])) == ["tea", "milk"]
"""

METADATA = """
import json
from importlib.metadata import requires, version
print(json.dumps([version("snakepit-bridge"), requires("snakepit-bridge") or []]))
"""


class Installation:
    """An environment with the wheel, and an empty directory to work in."""

    def __init__(self, directory: Path, python: str, wheel: Path) -> None:
        venv, self.work = directory / "venv", directory / "work"
        self.scripts = venv / "bin"
        self.work.mkdir()
        # No compiler, and no other Python.
        self.environment = {"PATH": str(self.scripts), "HOME": str(self.work), "TMPDIR": str(directory)}
        for name in ("cargo", "rustc"):
            assert shutil.which(name, path=self.environment["PATH"]) is None, f"{name} is on PATH"
        # With the environment of the caller, because the interpreter may be a name on its `PATH`.
        subprocess.run([python, "-m", "venv", str(venv)], check=True, timeout=LIMIT)  # noqa: S603
        self.python = str(self.scripts / "python3")
        # The option proves that the wheel needs no other package.
        pip = (self.python, "-m", "pip", "--quiet", "--disable-pip-version-check")
        self.run(*pip, "install", "--no-index", str(wheel))

    def run(self, *command: str, **more: str) -> str:
        """Run a command, and return its stdout."""
        finished = subprocess.run(  # noqa: S603
            command,
            cwd=self.work,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        shown = f"{command} ended with {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
        assert finished.returncode == 0, shown
        return finished.stdout

    @contextmanager
    def serving(self, *command: str, **more: str) -> Iterator[tuple[subprocess.Popen[str], Mapping[str, Any]]]:
        """Run a command that serves, and return its process and its ready line. Kill it afterwards."""
        log = self.work / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(  # noqa: S603
                command,
                cwd=self.work,
                env={**self.environment, **more},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        with process:
            try:
                assert process.stdout is not None
                readable, _, _ = select.select([process.stdout], [], [], LIMIT)
                line = process.stdout.readline() if readable else ""
                assert line, f"{command} does not serve:\n{log.read_text()}"
                yield process, json.loads(line)
            except BaseException:
                print(log.read_text(), file=sys.stderr)  # noqa: T201
                raise
            finally:
                process.kill()

    def check_calls(self, ready: Mapping[str, Any], workers: int) -> None:
        """Call tools from the command line and from Python."""
        address = ready["grpc"].removeprefix("http://")
        arguments = json.dumps({"item": "tea"})
        assert self.run("snakepit", "call", "price", "--args", arguments, "--server", address).strip() == "9.99"
        self.run(self.python, "-c", CLIENT, address, str(workers))


def check_contents(wheel: Path) -> None:
    """Check that the wheel has the licenses, one program, and no files of an interpreter."""
    names = zipfile.ZipFile(wheel).namelist()
    assert [name.rpartition("/")[2] for name in names if ".data/" in name] == ["snakepit"], names
    assert not [name for name in names if name.endswith(".pyc")], names
    assert len([name for name in names if "/licenses/LICENSE-" in name]) == 2, names


def check_commands(installed: Installation, expected_version: str) -> None:
    """Check the version and the help of both command lines, and the metadata."""
    module = (installed.python, "-m", "snakepit_bridge")
    for command in (("snakepit",), module):
        assert installed.run(*command, "--version").strip() == f"snakepit {expected_version}"
    version, requirements = json.loads(installed.run(installed.python, "-c", METADATA))
    assert version == expected_version
    assert all("extra ==" in requirement for requirement in requirements), requirements
    help_text = installed.run(*module)
    assert "Usage: snakepit" in help_text, help_text
    assert "serve" in help_text, help_text


def check_serve_command(installed: Installation) -> None:
    """Serve a class by its name, with the module as the program."""
    (installed.work / "shop.py").write_text(SHOP)
    command = (installed.python, "-m", "snakepit_bridge", "serve", "shop:Shop", "--workers", "1")
    with installed.serving(*command, "--listen", "127.0.0.1:0") as (process, ready):
        assert ready["pid"] == process.pid, "the module is the daemon, not its parent"
        installed.check_calls(ready, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0


def check_interpreter_beside_the_daemon(installed: Installation) -> None:
    """Serve a file with a daemon that finds no Python on ``PATH``."""
    command = (str(installed.scripts / "snakepit"), "serve", "shop.py", "--workers", "1", "--listen", "127.0.0.1:0")
    with installed.serving(*command, PATH="/nonexistent") as (process, ready):
        installed.check_calls(ready, 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0


def check_serve_function(installed: Installation) -> None:
    """Serve a class of the running program. Stop it by signals, and by a kill of the program alone."""
    (installed.work / "app.py").write_text(APP)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with installed.serving(installed.python, "app.py") as (process, ready):
            if number == signal.SIGINT:
                installed.check_calls(ready, 2)
            process.send_signal(number)
            # The daemon has the same stdout, which therefore closes when both have ended.
            stdout, _ = process.communicate(timeout=LIMIT)
            expected = ("", -number) if number == signal.SIGKILL else ("served\n", 0)
            assert (stdout, process.returncode) == expected, (number, stdout, process.returncode)


def main() -> None:
    """Check the wheel with each interpreter."""
    wheel, *pythons = sys.argv[1:]
    path = Path(wheel).resolve()
    version = path.name.split("-")[1]
    check_contents(path)
    for python in pythons or [sys.executable]:
        with tempfile.TemporaryDirectory(prefix="snakepit-") as directory:
            installed = Installation(Path(directory), python, path)
            check_commands(installed, version)
            check_serve_command(installed)
            check_interpreter_beside_the_daemon(installed)
            check_serve_function(installed)
        print(f"    {path.name} works with {python}")  # noqa: T201


if __name__ == "__main__":
    main()
