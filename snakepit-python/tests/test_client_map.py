"""`map`: many calls with bounded concurrency and results in order."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import daemons
from snakepit_bridge import AsyncClient, Client, ClientClosedError, InvalidTypeError
from snakepit_bridge._daemon import Daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with daemons.start(workers=2) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.address) as client:
        yield client


def test_results_are_in_order_and_items_are_read_when_a_call_can_begin(client: Client) -> None:
    read: list[int] = []

    def items() -> Iterator[dict[str, Any]]:
        for number in range(100):
            read.append(number)
            yield {"a": number}

    results = client.map("add", items(), concurrency=5)
    assert not read
    assert next(results) == 1.0
    assert read == [0, 1, 2, 3, 4][: len(read)]
    assert list(results) == [number + 1.0 for number in range(1, 100)]
    assert list(client.map("add", [])) == []


def test_the_first_result_does_not_wait_for_further_items(client: Client) -> None:
    read: list[int] = []

    def items() -> Iterator[dict[str, Any]]:
        for number in range(16):
            if number == 1:
                # The first call ends while the source waits.
                while client.status()["calls"]["succeeded"] == succeeded:
                    pass
            read.append(number)
            yield {"a": number}

    succeeded = client.status()["calls"]["succeeded"]
    results = client.map("add", items())
    assert next(results) == 1.0
    assert len(read) < 16
    assert list(results) == [number + 1.0 for number in range(1, 16)]


def test_calls_behind_a_slow_one_fill_the_window(client: Client, tmp_path: Path) -> None:
    pipes = daemons.Pipes(tmp_path)

    def play() -> None:
        pipes.wait_started()
        pipes.finish()

    player = threading.Thread(target=play)

    def items() -> Iterator[dict[str, Any]]:
        for number in range(8):
            if number == 4:
                # Until then, the second call runs.
                player.start()
            yield pipes.arguments if number == 1 else {"started": "/dev/null", "release": "/dev/null"}

    results = client.map("hold", items(), concurrency=4)
    assert next(results) == ""
    assert next(results) == "done"
    assert list(results) == [""] * 6
    player.join(20)


def test_map_ends_if_its_client_is_closed_during_a_pause() -> None:
    with daemons.Proxy() as proxy:
        client = Client(proxy.address, connect=False)
        closer = threading.Timer(0.3, client.close)
        errors: list[BaseException] = []

        def run() -> None:
            try:
                list(client.options(retries=1000).map("add", [{"a": 1}]))
            except ClientClosedError as error:
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        closer.start()
        thread.join(20)
        assert not thread.is_alive()
        assert errors


def test_large_items_run_at_the_same_time(client: Client, tmp_path: Path) -> None:
    # Calls with large requests use separate streams, and large metadata makes a request large. The first call ends only
    # after the second one has begun.
    first, second = daemons.Pipes(tmp_path, "first"), daemons.Pipes(tmp_path, "second")

    def release_in_reverse() -> None:
        first.wait_started()
        second.wait_started()
        second.finish("2")
        first.finish("1")

    releaser = threading.Thread(target=release_in_reverse)
    releaser.start()
    large = {"k": "v" * 2**19}
    items = [first.arguments, second.arguments]
    assert list(client.options(metadata=large).map("hold", items, concurrency=2)) == ["1", "2"]
    releaser.join(20)


def test_an_exception_ends_the_iteration_or_takes_the_place_of_a_result(client: Client) -> None:
    items: list[dict[str, Any]] = [{"a": 1}, {"a": "x"}, {"b": 2}, {"a": 3}]
    results = client.map("add", items)
    assert next(results) == 2.0
    with pytest.raises(ValueError, match="`a`"):
        next(results)
    assert list(results) == []
    results = client.map("add", items, return_exceptions=True)
    assert [type(result).__name__ for result in results] == [
        "float",
        "InvalidArgumentError",
        "InvalidArgumentError",
        "float",
    ]
    with pytest.raises(ValueError, match="no"):
        list(client.map("fail", [{"message": "no"}]))


def test_closing_the_iterator_cancels_the_calls(client: Client, tmp_path: Path) -> None:
    pipes = daemons.Pipes(tmp_path)
    missing = str(tmp_path / "no" / "directory")
    items = [{"started": missing, "release": missing}, pipes.arguments]
    results = client.map("hold", items, concurrency=2, return_exceptions=True)
    # The first call fails, and the second one waits.
    assert isinstance(next(results), FileNotFoundError)
    pipes.wait_started()
    before = client.status()["calls"]["cancelled"]
    results.close()  # type: ignore[attr-defined]
    cancelled = (client.status()["calls"]["cancelled"] for _ in range(10_000))
    assert any(count == before + 1 for count in cancelled)


@pytest.mark.parametrize("items", [{"a": 1}, "text", b"bytes", 5, None])
def test_items_must_be_mappings(client: Client, items: Any) -> None:
    with pytest.raises(InvalidTypeError, match="items"):
        client.map("add", items)
    item: Any = 5 if isinstance(items, dict) else items
    with pytest.raises(InvalidTypeError, match=r"items\[1\]"):
        list(client.map("add", [{"a": 1}, item]))


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, "2", True])
def test_invalid_concurrency_is_rejected(client: Client, concurrency: Any) -> None:
    with pytest.raises(ValueError, match="concurrency"):
        client.map("add", [], concurrency=concurrency)
    with pytest.raises(ValueError, match="return_exceptions"):
        client.map("add", [], return_exceptions=concurrency if isinstance(concurrency, str) else 5)  # type: ignore[arg-type]


def test_reports_are_delivered(client: Client) -> None:
    lines: list[str] = []
    caller = client.options(logs=lambda line: lines.append(line.text))
    assert list(caller.map("report", [{"lines": 2}] * 3, concurrency=1)) == [2, 2, 2]
    assert len(lines) == 6
    assert [line for line in lines if "line 2" in line]


def test_coroutines(daemon: Daemon) -> None:
    async def items() -> AsyncIterator[dict[str, Any]]:
        for number in range(20):
            await asyncio.sleep(0)
            yield {"a": number}

    async def run() -> None:
        async with AsyncClient(daemon.address) as client:
            expected = [number + 1.0 for number in range(20)]
            assert [result async for result in client.map("add", items(), concurrency=3)] == expected
            assert [result async for result in client.map("add", [{"a": 1}])] == [2.0]
            broken: list[dict[str, Any]] = [{"a": 1}, {"a": "x"}, {"a": 2}]
            results = [result async for result in client.map("add", broken, return_exceptions=True)]
            assert results[::2] == [2.0, 3.0]
            assert isinstance(results[1], ValueError)
            with pytest.raises(ValueError, match="`a`"):
                [result async for result in client.map("add", broken)]
            with pytest.raises(InvalidTypeError, match="items"):
                client.map("add", 5)  # type: ignore[arg-type]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_the_first_result_of_a_coroutine_does_not_wait_for_further_items(daemon: Daemon) -> None:
    async def run() -> None:
        received = asyncio.Event()

        async def items() -> AsyncIterator[dict[str, Any]]:
            yield {"a": 1}
            # Waits for the first result.
            await received.wait()
            yield {"a": 2}

        async with AsyncClient(daemon.address) as client:
            results = client.map("add", items())
            assert await asyncio.wait_for(anext(results), 20) == 2.0
            received.set()
            assert [result async for result in results] == [3.0]
            # Closing ends the wait for an item.
            received.clear()
            results = client.map("add", items())
            assert await asyncio.wait_for(anext(results), 20) == 2.0
            await results.aclose()  # type: ignore[attr-defined]
            # An exception of the source ends the iteration.
            broken = ({"a": 1 // number} for number in (1, 0))
            with pytest.raises(ZeroDivisionError):
                [result async for result in client.map("add", broken)]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_one_task_reads_all_items(daemon: Daemon) -> None:
    """A timeout and a context variable of a generator last from one item to the next."""
    position = contextvars.ContextVar[int]("position", default=0)

    async def items() -> AsyncIterator[dict[str, Any]]:
        async with asyncio.timeout(60):
            for _ in range(20):
                position.set(position.get() + 1)
                yield {"a": position.get()}

    async def run() -> None:
        async with AsyncClient(daemon.address) as client:
            results = [result async for result in client.map("add", items(), concurrency=3)]
            assert results == [number + 1.0 for number in range(1, 21)]

    asyncio.run(run())


def test_cancelling_a_coroutine_cancels_its_calls(daemon: Daemon, tmp_path: Path) -> None:
    pipes = [daemons.Pipes(tmp_path, str(number)) for number in range(2)]

    async def run() -> None:
        async with AsyncClient(daemon.address) as client:

            async def consume() -> None:
                async for _ in client.map("hold", [pipe.arguments for pipe in pipes]):
                    raise AssertionError

            task = asyncio.create_task(consume())
            for pipe in pipes:
                await asyncio.to_thread(pipe.wait_started)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(asyncio.all_tasks()) == 1
            # Both workers are free again.
            assert [result async for result in client.map("add", [{"a": 1}] * 4)] == [2.0] * 4

    asyncio.run(run())
