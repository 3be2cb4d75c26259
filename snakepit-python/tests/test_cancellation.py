"""Cancelled coroutines of workers that run several calls: their cleanup, and what remains of calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from snakepit_bridge.client import Client
from snakepit_bridge.errors import DeadlineExceededError, ToolFailed, WorkerLostError
from snakepit_bridge.testing import Daemon

#: The cleanups that must finish in each way.
WAYS = {
    "in_finally": ["finally"],
    "in_except": ["except"],
    "after_except": ["after except"],
    "in_context": ["context", "context"],
    "shielded": ["shield"],
    "in_group": ["child", "child", "parent"],
    "in_timeout": ["timeout"],
    "blocking": ["blocking"],
    "blocking_child": ["parent"],
    "in_anyio": ["child", "child", "parent"],
    "in_aiohttp": ["aiohttp"],
    "in_httpx": ["httpx"],
}


@pytest.fixture
def client(snakepit_daemon: Callable[..., Daemon]) -> Iterator[Client]:
    with snakepit_daemon("cancelled:Cancelled").client() as client:
        yield client


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def cancel(client: Client, way: str) -> list[str]:
    """Cancel a call, and return the events of its cleanup."""
    pid = client.call("clear")
    with pytest.raises(DeadlineExceededError):
        client.options(timeout=0.2).call("hang", way=way)
    until(lambda: len(client.call("events")) > len(WAYS[way]))
    events: list[str] = client.call("events")
    assert client.call("clear") == pid, "the worker was kept"
    assert events[0] == "began"
    return events[1:]


@pytest.mark.parametrize("way", WAYS)
def test_a_cancelled_coroutine_cleans_up_without_interruption(client: Client, way: str) -> None:
    library = way.removeprefix("in_")
    if library in ("anyio", "aiohttp", "httpx"):
        pytest.importorskip(library)
    assert cancel(client, way) == [f"{name}: cleaned up" for name in WAYS[way]]


@pytest.mark.parametrize("library", ["aiohttp", "httpx"])
def test_a_cancelled_request_releases_its_connection(client: Client, library: str) -> None:
    pytest.importorskip(library)
    cancel(client, f"in_{library}")
    assert client.call("fetch", client=library) == "ok"


def test_a_task_that_its_call_cancelled_cleans_up(client: Client) -> None:
    client.call("clear")
    client.call("leave")
    until(lambda: bool(client.call("events")))
    assert client.call("events") == ["finally: cleaned up"]


def test_a_call_that_does_not_end_costs_its_worker(client: Client) -> None:
    pid = client.call("clear")
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        client.options(timeout=0.1).call("never_end")

    def is_replaced() -> bool:
        try:
            return bool(client.call("clear") != pid)
        except WorkerLostError:
            return False

    until(is_replaced)
    # The grace period is 2 s.
    assert 2 < time.monotonic() - start < 10


def test_a_call_whose_task_cannot_be_created_fails_and_releases_its_place(
    snakepit_daemon: Callable[..., Daemon],
) -> None:
    with snakepit_daemon("cancelled:Cancelled", shared=False).client() as client:
        client.call("spoil_tasks", failures=25)
        for _ in range(25):
            with pytest.raises(ToolFailed, match="no task"):
                client.options(timeout=20).call("echo", value=1)
        assert client.options(timeout=20).call("echo", value=1) == 1


def test_ten_thousand_calls_leave_no_memory_behind(snakepit_daemon: Callable[..., Daemon]) -> None:
    with snakepit_daemon("cancelled:Cancelled", shared=False).client() as client:

        def call(count: int) -> None:
            with ThreadPoolExecutor(8) as threads:
                assert sum(threads.map(lambda _: client.call("echo", value=1), range(count))) == count

        call(1000)
        # Objects in cycles would stay.
        client.call("disable_gc")
        before: dict[str, Any] = client.call("memory")
        call(10_000)
        after: dict[str, Any] = client.call("memory")
        assert after["objects"] - before["objects"] < 1000, (before, after)
        assert after["bytes"] - before["bytes"] < 4 << 20, (before, after)


def test_timers_that_have_run_are_forgotten(client: Client) -> None:
    assert client.call("timers", count=2000) <= 16
