"""Answers of calls that end just before another call kills their worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from snakepit_bridge.client import Client
from snakepit_bridge.errors import WorkerLostError
from snakepit_bridge.testing import Daemon


def wait_for_calls(client: Client, count: int) -> None:
    """Wait until this number of calls is on the worker."""
    end = time.monotonic() + 30
    while client.status()["in_flight"] != count:
        assert time.monotonic() < end, client.status()


def test_a_long_answer_survives_the_next_call(snakepit_daemon: Callable[..., Daemon]) -> None:
    with snakepit_daemon("crowded:Serial").client() as client, ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            text = threads.submit(client.call, "large", count=5_000_000)
            wait_for_calls(client, 1)
            # Begins when the first call has ended.
            dies = threads.submit(client.call, "die")
            wait_for_calls(client, 2)
            client.call("proceed")
            assert len(text.result()) == 5_000_000
            with pytest.raises(WorkerLostError):
                dies.result()
