"""Answers of calls that end just before another call kills their worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from snakepit_bridge.errors import WorkerLostError
from snakepit_bridge.testing import Daemon


def test_a_long_answer_survives_the_next_call(snakepit_daemon: Callable[..., Daemon]) -> None:
    with snakepit_daemon("crowded:Serial").client() as client, ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            text = threads.submit(client.call, "large", count=5_000_000)
            # Arrives while the first call runs, and begins when it has ended.
            time.sleep(0.03)
            dies = threads.submit(client.call, "die")
            assert len(text.result()) == 5_000_000
            with pytest.raises(WorkerLostError):
                dies.result()
