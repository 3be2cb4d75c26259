"""Programs that serve their own adapters, and the command line of the package."""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import threading
import types
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import greeter
import greetings
from snakepit_bridge import Client, DaemonError, serve
from snakepit_bridge._launch import adapter_path, find_binary, inherited_environment, isolated_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The time limit of each wait, in seconds.
LIMIT = 60

#: A daemon that runs, or fails, as its arguments say.
FAKE = """#!{python}
import os, sys
{body}
"""


@contextmanager
def program(*command: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program, and kill it afterwards."""
    settings = {"SNAKEPIT_BINARY": str(find_binary()), "SNAKEPIT_LISTEN": "127.0.0.1:0", **more}
    environment = isolated_environment(settings)
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def ready_line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], LIMIT)
    assert readable, "the program does not serve"
    return json.loads(process.stdout.readline())


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL], ids=lambda n: n.name
)
def test_a_program_serves_its_own_class(number: signal.Signals) -> None:
    with program(str(greeter.__file__)) as process:
        ready = ready_line(process)
        assert ready["workers"] == 2
        daemon = os.pidfd_open(ready["pid"])
        try:
            with Client(ready["grpc"].removeprefix("http://")) as client:
                assert client.call("greet", name="Ada") == "Hello, Ada!"
            process.send_signal(number)
            assert process.wait(LIMIT) == (-9 if number == signal.SIGKILL else 0)
            # A program that handles the signal waits for the end of its daemon.
            ended, _, _ = select.select([daemon], [], [], LIMIT if number == signal.SIGKILL else 0)
            assert ended, "the daemon runs on without its program"
        finally:
            os.close(daemon)


def test_a_module_serves_itself() -> None:
    with program("-m", "greeter") as process, Client(ready_line(process)["grpc"].removeprefix("http://")) as client:
        assert client.call("greet", name="Ada") == "Hello, Ada!"


def test_a_program_without_the_guard_is_told_to_add_it(tmp_path: Path) -> None:
    source = "from snakepit_bridge import serve\ndef add(a: int) -> int: return a\nserve(add)\n"
    (tmp_path / "bare.py").write_text(source)
    with program(str(tmp_path / "bare.py")) as process:
        stdout, stderr = process.communicate(timeout=LIMIT)
    assert stdout == ""
    assert '__name__ == "__main__"' in stderr, stderr
    assert "DaemonError: the daemon failed with exit code 5" in stderr, stderr


def test_the_command_line_of_the_package_is_that_of_the_daemon() -> None:
    with program("-m", "snakepit_bridge", "serve", "greeter:Greeter", "--workers", "1") as process:
        ready = ready_line(process)
        assert ready["pid"] == process.pid
        process.terminate()
        assert process.wait(LIMIT) == 0
    with program("-m", "snakepit_bridge") as process:
        stdout, stderr = process.communicate(timeout=LIMIT)
        assert (process.returncode, stderr) == (0, "")
        assert "Usage: snakepit" in stdout
    with program("-m", "snakepit_bridge", "serve", SNAKEPIT_BINARY="/nonexistent") as process:
        assert process.wait(LIMIT) == 5
        assert process.stderr is not None
        assert process.stderr.read() == "snakepit: $SNAKEPIT_BINARY is `/nonexistent`, which is not a file\n"


def fake_daemon(directory: Path, body: str) -> str:
    path = directory / "snakepit"
    path.write_text(FAKE.format(python=sys.executable, body=body))
    path.chmod(0o755)
    return str(path)


def test_the_daemon_receives_all_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = 'print(sys.argv[1:], os.environ["GREETING"], os.environ["SNAKEPIT_PYTHON"])'
    monkeypatch.setenv("SNAKEPIT_BINARY", fake_daemon(tmp_path, body))
    serve("app:App", workers=3, listen="unix:x", args=["--json"], env={"GREETING": "hello"})
    expected = ["serve", "app:App", "--stop-with-stdin", "--workers", "3", "--listen", "unix:x", "--json"]
    assert capfd.readouterr().out == f"{expected} hello {sys.executable}\n"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)]
    assert handlers == [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL, signal.SIG_DFL]


def test_a_signal_that_the_program_ignores_stays_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # As under `nohup`.
    body = "import signal; sys.exit(signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)"
    monkeypatch.setenv("SNAKEPIT_BINARY", fake_daemon(tmp_path, body))
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        serve(greetings)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_failed_daemon_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SNAKEPIT_BINARY", fake_daemon(tmp_path, "sys.exit(5)"))
    with pytest.raises(DaemonError, match="exit code 5") as caught:
        serve(greetings)
    assert [entry.name for entry in caught.traceback] == ["test_a_failed_daemon_is_an_error", "serve"]
    monkeypatch.setenv("SNAKEPIT_BINARY", fake_daemon(tmp_path, "os.kill(os.getpid(), 9)"))
    with pytest.raises(DaemonError, match="killed by SIGKILL"):
        serve(greetings)
    (tmp_path / "snakepit").chmod(0o644)
    with pytest.raises(DaemonError, match="cannot be started"):
        serve(greetings)


def test_other_threads_may_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SNAKEPIT_BINARY", fake_daemon(tmp_path, f'open({str(tmp_path / "ran")!r}, "w")'))
    thread = threading.Thread(target=serve, args=["app:App"])
    thread.start()
    thread.join(LIMIT)
    assert (tmp_path / "ran").exists()


def test_paths_of_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert adapter_path("shop:Shop") == "shop:Shop"
    assert adapter_path("shop.py:Shop") == f"{Path.cwd()}/shop.py:Shop"
    assert adapter_path("/a/shop.py") == "/a/shop.py"
    assert adapter_path(greeter.Greeter) == "greeter:Greeter"
    assert adapter_path(greetings) == "greetings:"
    assert adapter_path(greetings.greet) == "greetings:greet"

    main = types.ModuleType("__main__")
    main.__spec__ = None
    monkeypatch.setitem(sys.modules, "__main__", main)
    vars(main)["Own"] = own = type("Own", (), {"__module__": "__main__"})
    with pytest.raises(ValueError, match="interactive session"):
        adapter_path(own)
    main.__file__ = "app.py"
    assert adapter_path(own) == f"{Path.cwd()}/app.py:Own"
    assert adapter_path(main) == f"{Path.cwd()}/app.py"
    main.__spec__ = types.SimpleNamespace(name="package.app")  # type: ignore[assignment]
    assert adapter_path(own) == "package.app:Own"


def test_adapters_that_workers_cannot_import() -> None:
    class Local:
        pass

    with pytest.raises(ValueError, match=r"`test_adapters.*Local`, .* not an attribute of module `test_serve`"):
        adapter_path(Local)
    with pytest.raises(TypeError, match="instance of `partial`"):
        adapter_path(functools.partial(print))
    with pytest.raises(TypeError, match="instance of `int`"):
        adapter_path(5)  # type: ignore[arg-type]


def test_the_binary_of_the_installation_precedes_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SNAKEPIT_BINARY", raising=False)
    site, scripts, other = tmp_path / "lib", tmp_path / "bin", tmp_path / "other"
    info = site / "snakepit_bridge-0.1.0.dist-info"
    for directory in (info, scripts, other):
        directory.mkdir(parents=True)
    fake_daemon(other, "")
    monkeypatch.setenv("PATH", str(other))
    monkeypatch.syspath_prepend(str(site))
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: snakepit-bridge\nVersion: 0.1.0\n")
    (info / "RECORD").write_text("../bin/snakepit,,\nsnakepit_bridge/__init__.py,,\n")
    assert find_binary() == other / "snakepit", "its script was removed"
    fake_daemon(scripts, "")
    assert find_binary() == scripts / "snakepit"


def test_programs_of_tools_do_not_inherit_the_standard_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    paths = inherited_environment()["PYTHONPATH"].split(os.pathsep)
    assert str(tmp_path) in paths
    assert not {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib")} & set(paths)
