"""Workers that a call has left unable to begin further calls are replaced. Slow ones are not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snakepit_bridge.client import Client
from snakepit_bridge.errors import DeadlineExceededError, SnakepitError
from snakepit_bridge.testing import Daemon

_LIMIT = 40.0


def _eventually(condition: Callable[[], bool], limit: float = _LIMIT) -> float:
    """Wait for a condition. Return the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit
        time.sleep(0.02)
    return time.monotonic() - began


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _pid(client: Client, timeout: float) -> int | None:
    try:
        found: int = client.options(timeout=timeout).call("pid")
    except SnakepitError:
        return None
    return found


@pytest.mark.parametrize("tool", ["close_signal", "close_wakers"])
def test_a_worker_that_begins_no_calls_is_replaced(tool: str) -> None:
    with Daemon("breaking:Concurrent", workers=1) as daemon:
        client = daemon.client()
        first: int = client.call("pid")
        client.call(tool)
        _eventually(lambda: _pid(client, 1.5) not in (None, first))
        assert "the worker is replaced: its event loop" in daemon.log


def test_a_worker_that_a_tool_blocks_is_only_slow() -> None:
    with Daemon("breaking:Concurrent", workers=1) as daemon:
        client = daemon.client()
        first: int = client.call("pid")
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(client.options(timeout=60).call("block", seconds=9.0)))
        thread.start()
        time.sleep(0.2)
        for _ in range(4):
            with pytest.raises(DeadlineExceededError):
                client.options(timeout=1.5).call("pid")
        thread.join()
        # Longer than the worker looks.
        assert (found, _pid(client, 30)) == ([first], first)
        assert "replaced" not in daemon.log


def test_a_thread_pool_that_closes_all_descriptors_costs_only_its_worker() -> None:
    with Daemon("breaking:Serial", workers=1) as daemon:
        client = daemon.client()
        first: int = client.call("leave_closing_threads")
        _eventually(lambda: _pid(client, 10) not in (None, first))
        _eventually(lambda: not _is_alive(first))
        assert "worker ended worker=default-0-1" in daemon.log


def test_a_retired_worker_does_not_wait_for_the_processes_of_a_pool() -> None:
    with Daemon("breaking:Serial", workers=1) as daemon:
        client = daemon.client()
        first: int = client.call("pid")
        with pytest.raises(DeadlineExceededError):
            client.options(timeout=1.0).call("leave_busy_pool")
        assert _eventually(lambda: not _is_alive(first)) < 4
        assert _pid(client, 20) not in (None, first)
        # The host did not have to kill it.
        _eventually(lambda: "worker ended worker=default-0-1" in daemon.log)
        (ended,) = (line for line in daemon.log.splitlines() if "worker ended worker=default-0-1" in line)
        assert "exited with code 0" in ended
