"""Deadlines and cancellation of tester calls, and the daemons of tests."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from snakepit_bridge import (
    BaseAdapter,
    CallCancelled,
    CallCancelledError,
    DeadlineExceededError,
    HostToolError,
    InvalidArgumentError,
    ToolError,
    ToolFailed,
    tool,
)
from snakepit_bridge._launch import find_binary
from snakepit_bridge.testing import Daemon, DaemonError, ToolTester


class Waits(BaseAdapter):
    #: What happened in the tools, and the event that a tool waits in its loop.
    log: list[str]
    started = threading.Event()

    def initialize(self) -> None:
        Waits.log = []
        Waits.started.clear()

    def cleanup(self) -> None:
        Waits.log.append("cleanup")

    @tool
    def sleep(self, seconds: float) -> str:
        """Sleep in one system call."""
        try:
            time.sleep(seconds)
        except CallCancelled:
            Waits.log.append("interrupted")
            raise
        return "slept"

    @tool
    def spin(self) -> None:
        """Run Python code forever."""
        Waits.started.set()
        try:
            while True:
                pass
        except CallCancelled:
            Waits.log.append("interrupted")
            raise

    @tool
    def swallow(self) -> str:
        """Continue after the first interruption."""
        try:
            time.sleep(30)
        except CallCancelled:
            Waits.log.append("swallowed")
        return "value"

    @tool
    async def wait(self) -> None:
        """Wait in a coroutine."""
        Waits.started.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            Waits.log.append("cancelled")
            await asyncio.sleep(0)
            raise

    @tool
    async def block(self) -> None:
        """Block the event loop."""
        try:
            time.sleep(30)
        except CallCancelled:
            Waits.log.append("interrupted")
            raise

    @tool
    def numbers(self) -> Iterator[int]:
        """Stream numbers, then wait."""
        yield 1
        try:
            time.sleep(30)
        finally:
            Waits.log.append("closed")

    @tool
    async def anumbers(self) -> AsyncIterator[int]:
        """Stream numbers, then wait in a coroutine."""
        yield 1
        try:
            await asyncio.sleep(30)
        finally:
            Waits.log.append("closed")

    @tool
    def remaining(self) -> float | None:
        """Return the time left."""
        return self.session_context.time_remaining()

    @tool
    def add(self, a: int, b: int) -> int:
        """Add."""
        return a + b

    @tool
    def fail(self) -> None:
        """Raise an exception with a cause."""
        try:
            raise KeyError("tea")
        except KeyError as error:
            raise ToolError("no", code="not_found") from error

    @tool
    def ask(self) -> str:
        """Call a host tool."""
        try:
            self.session_context.call_host_tool("find")
        except HostToolError as error:
            return f"{error.code} {error.data}"
        return "no error"


@pytest.fixture
def tester() -> Iterator[ToolTester]:
    with ToolTester(Waits, host_tools={"find": find}) as tester:
        yield tester


def find() -> None:
    raise ToolError("no such item", code="not_found", data={"left": [3]})


@pytest.mark.parametrize("name", ["spin", "wait"])
def test_a_deadline_interrupts_the_tool_and_the_next_call_runs(tester: ToolTester, name: str) -> None:
    for _ in range(2):
        with pytest.raises(DeadlineExceededError, match=f"`{name}` exceeded while running, after the caller's timeout"):
            tester.options(timeout=0.05).call(name)
        assert Waits.log == ["interrupted" if name == "spin" else "cancelled", "cleanup"]
        assert tester.call("add", a=1, b=2) == 3


@pytest.mark.parametrize(
    ("name", "entry"), [("sleep", "interrupted"), ("block", "interrupted"), ("swallow", "swallowed")]
)
def test_a_deadline_interrupts_system_calls_on_the_main_thread(tester: ToolTester, name: str, entry: str) -> None:
    arguments = {"seconds": 30} if name == "sleep" else {}
    with pytest.raises(DeadlineExceededError) as caught:
        tester.options(timeout=0.05).call(name, arguments)
    assert caught.value.may_have_run
    assert Waits.log == [entry, "cleanup"]


def test_a_call_in_time_has_its_result_and_knows_its_deadline(tester: ToolTester) -> None:
    calls = tester.options(timeout=60)
    assert calls.call("add", a=1, b=2) == 3
    assert 50 < calls.call("remaining") <= 60
    assert tester.call("remaining") is None
    with pytest.raises(ToolError) as caught:
        calls.call("fail")
    assert isinstance(caught.value, ToolFailed)
    assert isinstance(caught.value.__cause__, ToolError)
    assert isinstance(caught.value.__cause__.__cause__, KeyError)
    assert calls.call("ask") == "not_found {'left': [3]}"
    for timeout in (0, -1, float("nan"), "1"):
        with pytest.raises(InvalidArgumentError, match="`timeout`"):
            tester.options(timeout=timeout)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["numbers", "anumbers"])
def test_a_deadline_ends_a_stream(tester: ToolTester, name: str) -> None:
    with pytest.raises(DeadlineExceededError):
        tester.options(timeout=0.05).stream(name)
    assert Waits.log == ["closed", "cleanup"]


@pytest.mark.parametrize("name", ["numbers", "anumbers"])
def test_a_limit_interrupts_a_stream(tester: ToolTester, name: str) -> None:
    began = time.monotonic()
    for calls in (tester, tester.options(timeout=60)):
        assert [chunk.data for chunk in calls.stream(name, limit=1)] == [1]
        assert Waits.log == ["closed", "cleanup"]
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("name", "entry"), [("spin", "interrupted"), ("wait", "cancelled")])
def test_a_test_can_cancel_a_call(tester: ToolTester, name: str, entry: str) -> None:
    call = tester.start(name)
    assert Waits.started.wait(10)
    assert not call.done()
    call.cancel()
    with pytest.raises(CallCancelledError, match=f"call of tool `{name}` was cancelled"):
        call.result(timeout=10)
    assert call.done()
    assert Waits.log == [entry, "cleanup"]
    call.cancel()
    assert tester.start("add", a=1, b=2).result(timeout=10) == 3


def test_a_call_that_waits_for_another_one_never_starts(tester: ToolTester) -> None:
    running = tester.start("wait")
    assert Waits.started.wait(10)
    queued = tester.start("add", a=1, b=2)
    queued.cancel()
    running.cancel()
    for call in (running, queued):
        with pytest.raises(CallCancelledError):
            call.result(timeout=10)


class Serial(BaseAdapter):
    """Records the begin and the end of calls."""

    events: list[str]
    started = threading.Event()

    @classmethod
    def process_init(cls) -> None:
        cls.events = []
        cls.started.clear()

    @classmethod
    def process_exit(cls) -> None:
        cls.events.append("exit")

    @tool
    def run(self) -> None:
        self.events.append("begin")
        Serial.started.set()
        time.sleep(0.05)
        self.events.append("end")


def test_calls_of_several_threads_run_one_after_another() -> None:
    with ToolTester(Serial) as tester:
        calls = [tester.start("run")]
        assert Serial.started.wait(10)
        with ThreadPoolExecutor(3) as threads:
            assert list(threads.map(lambda _: tester.call("run"), range(3))) == [None] * 3
        tester.call("run")
        calls.append(tester.start("run"))
    assert [call.result(10) for call in calls] == [None] * 2
    assert Serial.events == ["begin", "end"] * 6 + ["exit"]


def test_another_thread_may_import_asyncio_meanwhile(tester: ToolTester, monkeypatch: pytest.MonkeyPatch) -> None:
    # A module has no functions at the beginning of its import.
    monkeypatch.setitem(sys.modules, "asyncio", ModuleType("asyncio"))
    assert tester.call("add", a=1, b=2) == 3


def test_cancelling_a_task_cancels_its_call(tester: ToolTester) -> None:
    async def cancel() -> None:
        for name, entry in (("wait", "cancelled"), ("spin", "interrupted")):
            Waits.started.clear()
            task = asyncio.create_task(tester.call_async(name))
            assert await asyncio.to_thread(Waits.started.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # The tool has ended before the task.
            assert Waits.log == [entry, "cleanup"]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(tester.call_async(name), 0.05)
        assert await tester.call_async("add", a=1, b=2) == 3
        with pytest.raises(DeadlineExceededError):
            await tester.options(timeout=0.05).call_async("wait")
        with pytest.raises(DeadlineExceededError):
            await tester.options(timeout=0.05).stream_async("anumbers")

    asyncio.run(cancel())


def test_a_daemon_serves_an_adapter(snakepit_daemon: Callable[..., Daemon]) -> None:
    daemon = snakepit_daemon("quotas:Quotas", workers=2)
    assert snakepit_daemon("quotas:Quotas", workers=2) is daemon
    with daemon.client() as client:
        assert client.call("spend", user="alice", units=1) == 2
        with pytest.raises(ToolFailed, match="all 3 units"):
            client.call("spend", user="alice", units=9)
    assert "worker is up" in daemon.log
    other = snakepit_daemon("quotas:Quotas", workers=2, shared=False, args=["--tracebacks", "never"])
    assert other.address != daemon.address
    with pytest.raises(ToolFailed) as caught:
        other.client(exceptions=[]).call("clean_up")
    assert (caught.value.traceback, caught.value.__context__) == ("", None)
    other.stop()
    other.stop()
    assert not other.is_running


def test_a_daemon_that_cannot_start_shows_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DaemonError, match="no_such_module"):
        Daemon("no_such_module:Adapter")
    monkeypatch.setenv("SNAKEPIT_BINARY", str(tmp_path / "missing"))
    with pytest.raises(DaemonError, match="SNAKEPIT_BINARY"):
        Daemon("shop:Shop")
    with pytest.raises(DaemonError, match="cannot be started"):
        Daemon("shop:Shop", binary=tmp_path)


def test_a_daemon_finds_a_file_in_the_current_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("numbers_file.py").write_text("def double(x: int) -> int: return 2 * x\n")
    for adapter in ("numbers_file.py", "numbers_file.py:double"):
        with Daemon(adapter) as daemon:
            assert daemon.client().call("double", x=2) == 4


def test_an_adapter_that_changes_the_environment_does_not_change_the_settings_of_its_worker(tmp_path: Path) -> None:
    path = tmp_path / "clearing.py"
    path.write_text("import os\nos.environ.clear()\nasync def double(x: int) -> int: return 2 * x\n")
    with Daemon(str(path), args=["--concurrency", "3"]) as daemon:
        assert daemon.client().call("double", x=2) == 4
        up = next(line for line in daemon.log.splitlines() if "worker is up" in line)
        assert "127.0.0.1" not in up, up
        assert "unix:" in up, up


def test_a_daemon_whose_parent_blocks_signals_stops_when_it_is_asked() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        daemon = Daemon("quotas:Quotas")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    process = daemon._process
    daemon.stop(timeout=30)
    assert process.returncode == 0


#: Starts a daemon, prints its id and that of a worker, and waits until it is killed.
STARTER = """
import sys
from snakepit_bridge.testing import Daemon

with Daemon("quotas:Quotas") as daemon:
    print(daemon.pid, flush=True)
    sys.stdin.read()
"""


def test_a_daemon_stops_if_its_starter_is_killed() -> None:
    starter = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", STARTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with starter:
        assert starter.stdout is not None
        daemon = os.pidfd_open(int(starter.stdout.readline()))
        try:
            starter.kill()
            ended, _, _ = select.select([daemon], [], [], 30)
            assert ended, "the daemon runs on without the process that started it"
        finally:
            os.close(daemon)


def test_a_daemon_with_a_nonblocking_stdin_stops_at_its_end() -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    command = [str(find_binary()), "serve", "quotas:Quotas", "--listen", "127.0.0.1:0", "--stop-with-stdin"]
    environment = {**os.environ, "SNAKEPIT_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path)}
    daemon = subprocess.Popen(command, stdin=read, stdout=subprocess.PIPE, env=environment)  # noqa: S603
    with daemon:
        os.close(read)
        try:
            assert daemon.stdout is not None
            assert b"grpc" in daemon.stdout.readline()
            os.write(write, b"ignored")
            assert daemon.poll() is None
        finally:
            os.close(write)
        assert daemon.wait(30) == 0


def test_the_binary_is_found_in_cargos_target_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SNAKEPIT_BINARY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("CARGO_TARGET_DIR", str(tmp_path / "built"))
    binary = tmp_path / "built" / "release" / "snakepit"
    binary.parent.mkdir(parents=True)
    binary.touch()
    assert find_binary() == binary


#: Calls tools on other threads, one of which is cancelled, and then runs traced code there.
TRACED = """
import asyncio, sys, threading
from snakepit_bridge import CallCancelledError, tool
from snakepit_bridge.testing import ToolTester

class Adapter:
    @tool
    async def fast(self) -> int: return 1
    @tool
    def traced(self) -> int:
        def function(): return 2
        sys.settrace(lambda frame, event, argument: None)
        result = function()
        sys.settrace(None)
        return result
    @tool
    def endless(self) -> None:
        started.set()
        while True: pass

started = threading.Event()
tester = ToolTester(Adapter)
print(asyncio.run(tester.call_async("fast")))
print(asyncio.run(tester.call_async("traced")))
call = tester.start("endless")
started.wait()
call.cancel()
try:
    call.result()
except CallCancelledError:
    print(asyncio.run(tester.call_async("traced")))
"""


def test_tools_run_under_a_debugger_and_under_coverage() -> None:
    # On CPython 3.11, traced code would never continue after a call on another thread.
    command = [sys.executable, "-c", TRACED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    assert done.stdout.split() == ["1", "2", "2"]


PLUGIN_TEST = """
import sys

def test_before():
    assert "snakepit_pytest" in sys.modules
    assert "snakepit_bridge" not in sys.modules

def test_with_a_fixture(snakepit_tester):
    from snakepit_bridge import tool

    class Adder:
        @tool
        def add(self, a: int) -> int:
            return a + 1

    assert snakepit_tester(Adder).call("add", a=1) == 2
    assert "snakepit_bridge._daemon" not in sys.modules
"""


def test_the_plugin_imports_nothing_until_a_fixture_is_used(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(PLUGIN_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)  # noqa: S603
    assert "2 passed" in done.stdout, done.stdout + done.stderr
