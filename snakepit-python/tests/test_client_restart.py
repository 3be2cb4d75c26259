"""`restart_workers`: clients replace the workers of a real daemon whose code has changed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snakepit_bridge import AsyncClient, Client, ClientClosedError, DeadlineExceededError, SnakepitError
from snakepit_bridge._daemon import Daemon

Restart = Callable[[str, float | None], None]


def write(adapter: Path, answer: int, more: str = "") -> None:
    adapter.write_text(f"def answer() -> int:\n    return {answer}\n\n{more}\n")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    adapter = tmp_path / "restarted.py"
    write(adapter, 1)
    return adapter


@pytest.fixture
def daemon(adapter: Path) -> Iterator[Daemon]:
    # Without bytecode, whose check of the time of the file misses changes within the same second.
    with Daemon(str(adapter), workers=2, env={"PYTHONDONTWRITEBYTECODE": "1"}) as daemon:
        yield daemon


def restart(address: str, timeout: float | None) -> None:
    with Client(address) as client:
        (client if timeout is None else client.options(timeout=timeout)).restart_workers()


def restart_async(address: str, timeout: float | None) -> None:
    async def run() -> None:
        async with AsyncClient(address) as client:
            await (client if timeout is None else client.options(timeout=timeout)).restart_workers()

    asyncio.run(run())


@pytest.mark.parametrize("restart", [restart, restart_async])
def test_a_restart_loads_new_code_or_reports_why_it_does_not_start(
    daemon: Daemon, adapter: Path, restart: Restart
) -> None:
    with Client(daemon.address) as client:
        before = {worker["id"] for worker in client.workers()}
        write(adapter, 2)
        restart(daemon.address, None)
        assert client.call("answer") == 2
        replaced = {worker["id"] for worker in client.workers()}
        assert len(replaced) == 2
        assert not replaced & before
        write(adapter, 3, "raise ValueError('on purpose')")
        with pytest.raises(SnakepitError, match="the workers were not restarted") as caught:
            restart(daemon.address, 120)
        assert not caught.value.is_retryable
        assert "on purpose" in str(caught.value.__cause__)
        assert "restarted.py" in str(caught.value.__cause__)
        assert client.call("answer") == 2
        assert {worker["id"] for worker in client.workers()} == replaced


@pytest.mark.parametrize("restart", [restart, restart_async])
def test_a_restart_continues_after_its_timeout(daemon: Daemon, adapter: Path, tmp_path: Path, restart: Restart) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    # The first new worker does not start before the test opens the gate.
    write(adapter, 2, f"import os\nif os.path.exists({str(gate)!r}):\n    open({str(gate)!r}).close()")
    with pytest.raises(DeadlineExceededError):
        restart(daemon.address, 0.5)
    with gate.open("w"):
        gate.unlink()
    with Client(daemon.address) as client:
        client.restart_workers()
        assert client.call("answer") == 2
    with pytest.raises(ClientClosedError):
        client.restart_workers()
