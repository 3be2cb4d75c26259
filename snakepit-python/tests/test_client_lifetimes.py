"""Clients while hosts restart, connections break, processes fork, and interpreters exit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import daemons
from snakepit_bridge import AsyncClient, Client, DeadlineExceededError, HostUnavailableError, NotFoundError
from snakepit_bridge._daemon import Daemon
from snakepit_bridge.reports import LogLine


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with daemons.start(workers=2) as daemon:
        yield daemon


def test_an_open_client_survives_the_restart_of_its_host(tmp_path: Path) -> None:
    pipes = daemons.Pipes(tmp_path)
    with daemons.Proxy() as proxy, daemons.start() as second:
        with daemons.start() as first:
            proxy.listen(first)
            client = Client(proxy.address)
            session = client.session("s")
            session["n"] = 1
            watch = session.watch("n")
            errors: list[HostUnavailableError] = []

            def hold() -> None:
                with pytest.raises(HostUnavailableError) as caught:
                    client.call("hold", **pipes.arguments)
                errors.append(caught.value)

            thread = threading.Thread(target=hold)
            thread.start()
            pipes.wait_started()
            os.kill(first.pid, signal.SIGKILL)
            thread.join(20)
            assert errors[0].may_have_run
            assert not errors[0].is_retryable
            with pytest.raises(HostUnavailableError):
                next(watch)
            proxy.refuse()
            with pytest.raises(HostUnavailableError) as caught:
                client.call("add", a=1)
            assert caught.value.is_retryable
        proxy.listen(second)
        client.wait_ready(20)
        assert client.call("add", a=1) == 2.0
        # The new host does not know the session.
        with pytest.raises(NotFoundError):
            session.call("add", a=1)
        client.session("s")["n"] = 2
        assert session["n"] == 2
        client.close()


def test_many_threads_share_a_client(daemon: Daemon) -> None:
    errors: list[BaseException] = []

    def use(number: int) -> None:
        try:
            session = client.session(f"thread-{number}")
            for step in range(20):
                assert session.call("add", a=step) == step + 1.0
                session["n"] = step
                assert session["n"] == step
            assert list(client.map("add", [{"a": 1}] * 10, concurrency=3)) == [2.0] * 10
        except BaseException as error:
            errors.append(error)

    with Client(daemon.address) as client:
        threads = [threading.Thread(target=use, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not errors


def in_child(function: Any) -> None:
    """Run a function in a fork, and check that it succeeds."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(9)
    for _ in range(4000):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0
            return
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the fork hangs")


def test_a_fork_rejects_the_client_of_its_parent(daemon: Daemon) -> None:
    with Client(daemon.address) as client:
        async_client = AsyncClient(daemon.address)
        asyncio.run(async_client.connect())
        session = client.session("fork")
        results = client.map("add", [{"a": 1}, {"a": 2}])
        assert next(results) == 2.0

        def use() -> None:
            def rejected(action: Any) -> None:
                with pytest.raises(HostUnavailableError, match="fork"):
                    action()

            for action in (
                lambda: client.call("add", a=1),
                lambda: client.options(retries=1).call("add", a=1),
                client.tools,
                client.workers,
                client.status,
                client.wait_ready,
                session.info,
                lambda: list(client.map("add", [{"a": 1}])),
                lambda: asyncio.run(async_client.call("add", a=1)),
                lambda: asyncio.run(async_client.tools()),
                lambda: asyncio.run(async_client.connect()),
                lambda: asyncio.run(async_client.wait_ready()),
                lambda: asyncio.run(async_client.close(timeout=1)),
            ):
                rejected(action)
            client.close()
            with Client(daemon.address) as own:
                assert own.call("add", a=1) == 2.0

        in_child(use)
        assert list(results) == [3.0]
        assert client.call("add", a=1) == 2.0
        asyncio.run(async_client.close())


@pytest.mark.parametrize(
    "ending",
    ["", "raise SystemExit(3)", "import os; os.kill(os.getpid(), 2)"],
)
@pytest.mark.parametrize("mode", ["thread", "daemon thread", "stream", "watch", "task", "map", "pending"])
def test_an_interpreter_exits_with_open_calls(daemon: Daemon, tmp_path: Path, mode: str, ending: str) -> None:
    pipes = daemons.Pipes(tmp_path)
    program = f"""
import asyncio, sys, threading
from snakepit_bridge import AsyncClient, Client
arguments = {pipes.arguments!r}
client = Client({daemon.address!r})
mode = {mode!r}

def wait_started():
    with open(arguments["started"]) as file:
        assert file.read() == "started"

if "thread" in mode:
    call = client.options(timeout=2).call
    threading.Thread(target=call, args=("hold",), kwargs=arguments, daemon=mode[0] == "d").start()
    wait_started()
elif mode == "stream":
    stream = client.stream("held_count", **arguments)
    assert next(stream) == "first"
    wait_started()
elif mode == "watch":
    watch = client.session("exit").watch()
elif mode == "map":
    failing = {{"started": {str(tmp_path / "no" / "file")!r}, "release": ""}}
    results = client.map("hold", [failing, arguments], return_exceptions=True)
    next(results)
    wait_started()
elif mode == "task":
    async def main():
        other = AsyncClient({daemon.address!r})
        task = asyncio.create_task(other.call("hold", **arguments))
        await asyncio.to_thread(wait_started)
        return other, task
    kept = asyncio.run(main())
else:
    async def main():
        other = AsyncClient({daemon.address!r})
        await other.session("exit")
        return other, asyncio.ensure_future(other.tools())
    loop = asyncio.new_event_loop()
    other, task = loop.run_until_complete(main())
    task._log_destroy_pending = False
{ending}
"""
    command = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", program]
    finished = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, timeout=60, env=environment()
    )
    expected = {"": 0, "raise SystemExit(3)": 3}.get(ending, -2)
    assert finished.returncode == expected, finished.stderr
    if mode == "thread":
        # The interpreter waits for the thread, whose call ends at its deadline.
        assert "DeadlineExceededError" in finished.stderr
    elif not ending:
        assert finished.stderr == ""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.mark.parametrize("kind", ["call", "stream", "map"])
def test_slow_functions_do_not_delay_the_end_of_a_call(daemon: Daemon, kind: str) -> None:
    received: list[LogLine] = []

    def slow(line: LogLine) -> None:
        received.append(line)
        time.sleep(0.1)

    with Client(daemon.address) as client:
        caller = client.options(timeout=1, logs=slow)
        start = time.monotonic()
        # All lines together would take 100 seconds. The result arrived in time.
        # On a loaded machine, the tool itself may take too long.
        with contextlib.suppress(DeadlineExceededError):
            if kind == "call":
                assert caller.call("report", lines=1000) == 1000
            elif kind == "map":
                assert list(caller.map("report", [{"lines": 1000}])) == [1000]
            else:
                assert list(caller.stream("reports", lines=1000)) == [1000]
        assert time.monotonic() - start < 5
        assert 0 < len(received) < 60

        async def run() -> None:
            async with AsyncClient(daemon.address) as other:
                start = time.monotonic()
                received.clear()
                with contextlib.suppress(DeadlineExceededError):
                    assert await other.options(timeout=1, logs=slow).call("report", lines=1000) == 1000
                assert time.monotonic() - start < 5
                assert 0 < len(received) < 60

        asyncio.run(run())


def test_a_frozen_host_ends_no_deadline_late(tmp_path: Path) -> None:
    with daemons.start() as daemon, Client(daemon.address) as client:
        client.call("add", a=1)
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            start = time.monotonic()
            with pytest.raises(DeadlineExceededError):
                client.options(timeout=0.5).call("add", a=1)
            with pytest.raises(DeadlineExceededError):
                client.options(timeout=0.5).tools()
            with pytest.raises(DeadlineExceededError):
                list(client.options(timeout=0.5).map("add", [{"a": 1}] * 3))
            with pytest.raises(DeadlineExceededError):
                client.options(timeout=0.5, retries=5, idempotent=True).call("add", a=1)
            with pytest.raises(DeadlineExceededError):
                client.wait_ready(0.5)
            with pytest.raises(HostUnavailableError):
                Client(daemon.address, connect_timeout=0.5)
            assert time.monotonic() - start < 10
            client.close(timeout=0)
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
