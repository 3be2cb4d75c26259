"""Retries, and waits for room in the queue and for the host."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import daemons
from snakepit_bridge import (
    AsyncClient,
    Client,
    ConnectTimeoutError,
    DeadlineExceededError,
    HostUnavailableError,
    NotFoundError,
    OverloadedError,
    SnakepitError,
    ToolFailed,
    WorkerLostError,
)
from snakepit_bridge._attempts import Attempts
from snakepit_bridge._call_options import CallOptions
from snakepit_bridge._daemon import Daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with daemons.start("--queue-limit", "1") as daemon:
        yield daemon


def options(**changes: Any) -> CallOptions:
    return CallOptions(**changes)


@pytest.mark.parametrize(
    ("error", "retryable", "retryable_if_idempotent"),
    [
        (OverloadedError("full"), True, True),
        (HostUnavailableError("no worker", may_have_run=False), True, True),
        (HostUnavailableError("the connection broke"), False, True),
        (WorkerLostError("lost"), False, True),
        (ConnectTimeoutError("late"), True, True),
        (DeadlineExceededError("late"), False, True),
        (DeadlineExceededError("queued", may_have_run=False), True, True),
        (NotFoundError("no such tool"), False, False),
        (ToolFailed("ValueError", "no"), False, False),
        (SnakepitError("internal"), False, False),
    ],
)
def test_only_safe_errors_are_retried(error: SnakepitError, retryable: bool, retryable_if_idempotent: bool) -> None:
    assert error.is_retryable == retryable
    assert (Attempts(options(retries=1)).pause_after(error) is not None) == retryable
    idempotent = Attempts(options(retries=1, idempotent=True))
    assert (idempotent.pause_after(error) is not None) == retryable_if_idempotent
    assert idempotent.pause_after(error) is None, "one retry"
    assert Attempts(options(idempotent=True)).pause_after(error) is None


def test_pauses_grow_and_respect_the_hint_and_the_deadline() -> None:
    attempts = Attempts(options(retries=12))
    error = HostUnavailableError("down", may_have_run=False)
    pauses = [attempts.pause_after(error) or 0.0 for _ in range(12)]
    for pause, least in zip(pauses, [0.1 * 2**n for n in range(7)], strict=False):
        assert least <= pause <= least * 1.5
    assert all(10 <= pause <= 15 for pause in pauses[7:])
    endless = Attempts(options(retries=1)).pause_after(OverloadedError("full", retry_after=1e18))
    assert endless is not None
    assert endless <= 2 * 24 * 3600
    hinted = Attempts(options(retries=1)).pause_after(OverloadedError("full", retry_after=2.0))
    assert hinted is not None
    assert 2 <= hinted <= 3
    assert Attempts(options(retries=1, timeout=1)).pause_after(OverloadedError("full", retry_after=2.0)) is None
    room = Attempts(options(wait_for_room=0.5)).pause_after(OverloadedError("full", retry_after=2.0))
    assert room is not None
    assert 0.4 < room <= 0.5, "the last attempt is at the end of the wait"
    assert Attempts(options(wait_for_room=0.5)).pause_after(error) is None


class Busy:
    """A daemon whose only worker and whose queue are occupied, until `finish` is called."""

    def __init__(self, client: Client, directory: Path) -> None:
        self.pipes = [daemons.Pipes(directory, str(number)) for number in range(2)]
        self.threads = [
            threading.Thread(target=client.call, args=("hold",), kwargs=pipe.arguments) for pipe in self.pipes
        ]
        self.threads[0].start()
        self.pipes[0].wait_started()
        self.threads[1].start()
        while client.status()["queued"] < 1:
            pass

    def finish(self) -> None:
        self.pipes[0].finish()
        self.pipes[1].wait_started()
        self.pipes[1].finish()
        for thread in self.threads:
            thread.join(20)


def test_a_call_waits_for_room(daemon: Daemon, tmp_path: Path) -> None:
    with Client(daemon.address) as client:
        busy = Busy(client, tmp_path)
        rejected = client.status()["calls"]["rejected"]
        with pytest.raises(OverloadedError) as caught:
            client.call("add", a=1)
        assert caught.value.is_retryable
        start = time.monotonic()
        with pytest.raises(OverloadedError):
            client.options(wait_for_room=0.3).call("add", a=1)
        assert 0.3 <= time.monotonic() - start < 5
        # The deadline is earlier.
        with pytest.raises((OverloadedError, DeadlineExceededError)):
            client.options(wait_for_room=60, timeout=0.4).call("add", a=1)
        results: list[object] = []

        async def wait() -> None:
            async with AsyncClient(daemon.address) as other:
                results.append(await other.options(wait_for_room=60).call("add", a=2))
                results.append([n async for n in other.options(wait_for_room=60).stream("count", n=2)])

        def iterate() -> None:
            results.append(list(client.options(wait_for_room=60).stream("count", n=3)))

        calls: list[Callable[[], object]] = [
            lambda: results.append(client.options(wait_for_room=60).call("add", a=1)),
            iterate,
            lambda: asyncio.run(wait()),
            lambda: results.append(list(client.options(wait_for_room=60).map("add", [{"a": 5}] * 5))),
        ]
        waiters = [threading.Thread(target=call) for call in calls]
        for waiter in waiters:
            waiter.start()
        while client.status()["calls"]["rejected"] < rejected + 8:
            pass
        assert not results
        busy.finish()
        for waiter in waiters:
            waiter.join(30)
        assert len(results) == 5
        for expected in (2.0, 3.0, [1, 2, 3], [1, 2], [6.0] * 5):
            assert expected in results


def test_an_idempotent_call_is_retried_beyond_the_retries_of_the_host(daemon: Daemon, tmp_path: Path) -> None:
    with Client(daemon.address) as client:
        log = tmp_path / "once"
        with pytest.raises(WorkerLostError) as caught:
            client.options(retries=5).call("kill_worker", log=str(log), times=1)
        assert caught.value.may_have_run
        assert log.stat().st_size == 1, "a call that may have run is not repeated"
        caller = client.options(retries=5, idempotent=True, timeout=60)
        times = 4
        assert caller.call("kill_worker", log=str(tmp_path / "many"), times=times) == times + 1
        assert list(caller.stream("kill_worker_in_stream", log=str(tmp_path / "stream"), times=times)) == [times + 1]
        items = [{"log": str(tmp_path / "mapped"), "times": times}]
        assert list(caller.map("kill_worker", items)) == [times + 1]

        async def run() -> None:
            async with AsyncClient(daemon.address) as other:
                caller = other.options(retries=5, idempotent=True, timeout=60)
                log = str(tmp_path / "async")
                assert await caller.call("kill_worker", log=log, times=times) == times + 1
                log = str(tmp_path / "async-stream")
                stream = caller.stream("kill_worker_in_stream", log=log, times=times)
                assert [runs async for runs in stream] == [times + 1]

        asyncio.run(run())


def test_a_stream_is_not_repeated_after_its_first_value(daemon: Daemon, tmp_path: Path) -> None:
    pipes = daemons.Pipes(tmp_path)
    with daemons.Proxy(daemon) as proxy, Client(proxy.address) as client:
        stream = client.options(retries=5, idempotent=True).stream("held_count", **pipes.arguments)
        assert next(stream) == "first"
        pipes.wait_started()
        proxy.refuse()
        with pytest.raises(HostUnavailableError, match="connection"):
            next(stream)


def test_retries_bridge_the_absence_of_a_host(daemon: Daemon) -> None:
    with daemons.Proxy() as proxy, Client(proxy.address, connect=False) as client:
        start = time.monotonic()
        with pytest.raises(HostUnavailableError):
            client.options(retries=2).call("add", a=1)
        assert 0.3 <= time.monotonic() - start < 10
        with pytest.raises(HostUnavailableError):
            client.options(retries=100, timeout=0.5).call("add", a=1)
        timer = threading.Timer(0.3, proxy.listen, [daemon])
        timer.start()
        assert client.options(retries=10).call("add", a=1) == 2.0
        timer.join()


def test_a_client_waits_for_a_host_that_starts_later(daemon: Daemon) -> None:
    with daemons.Proxy() as proxy, Client(proxy.address, connect=False) as client:
        with pytest.raises(ConnectTimeoutError, match=r"was not ready within 0\.2 s: cannot reach a host"):
            client.wait_ready(timeout=0.2)
        timer = threading.Timer(0.2, proxy.listen, [daemon])
        timer.start()
        client.wait_ready(timeout=30)
        assert client.call("add", a=1) == 2.0
        timer.join()
        proxy.refuse()

        async def run() -> None:
            async_client = AsyncClient(proxy.address)
            with pytest.raises(ConnectTimeoutError, match="was not ready"):
                await async_client.wait_ready(0.2)
            timer = threading.Timer(0.2, proxy.listen, [daemon])
            timer.start()
            await async_client.wait_ready()
            assert await async_client.call("add", a=1) == 2.0
            await async_client.close()
            timer.join()

        asyncio.run(run())


def test_a_host_without_workers_is_not_ready(tmp_path: Path) -> None:
    adapter = tmp_path / "gated.py"
    gate = tmp_path / "gate"
    adapter.write_text(
        "import os\n"
        "from snakepit_bridge import BaseAdapter, tool\n"
        "class Gated(BaseAdapter):\n"
        "    @classmethod\n"
        "    def process_init(cls):\n"
        f"        if os.path.exists({str(gate)!r}):\n"
        "            raise RuntimeError('closed')\n"
        "    @tool\n"
        "    def die(self) -> None:\n"
        "        os._exit(1)\n"
    )
    with Daemon(str(adapter)) as daemon, daemon.client() as client:
        client.wait_ready(5)
        gate.touch()
        with pytest.raises(WorkerLostError):
            client.call("die")
        with pytest.raises(ConnectTimeoutError, match="no worker is ready"):
            client.wait_ready(timeout=1)
        gate.unlink()
        client.wait_ready(timeout=60)
        with pytest.raises(WorkerLostError):
            client.call("die")
