"""`AsyncClient`: every operation as a coroutine, and the ends of tasks and event loops."""

from __future__ import annotations

import asyncio
import gc
import pickle
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import daemons
from snakepit_bridge import (
    AlreadyExistsError,
    AsyncClient,
    AsyncSession,
    BatchError,
    Client,
    ClientClosedError,
    DeadlineExceededError,
    HostUnavailableError,
    InvalidArgumentError,
    InvalidTypeError,
    NotFoundError,
    ProgramNotFoundError,
    UnsupportedError,
    ValidationError,
    VariableNotFoundError,
    VersionConflictError,
)
from snakepit_bridge._daemon import Daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with daemons.start(workers=2) as daemon:
        yield daemon


def run(daemon: Daemon, scenario: Callable[[AsyncClient], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.address) as client:
            await scenario(client)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


async def raised(kind: type[BaseException], awaitable: Awaitable[object]) -> Any:
    with pytest.raises(kind) as caught:
        await awaitable
    return caught.value


async def abandoned_batch(session: AsyncSession) -> None:
    async with session.batch_updates() as batch:
        batch["n"] = 7
        raise KeyError


def test_calls_and_listings(daemon: Daemon) -> None:
    async def scenario(client: AsyncClient) -> None:
        assert await client.call("add", a=1) == 2.0
        assert [number async for number in client.stream("count", n=3)] == [1, 2, 3]
        assert (await client.tools())["add"]["signature"] == "add(*, a: int, b: float = 1.0) -> float"
        assert len(await client.workers()) == 2
        assert (await client.status())["queued"] == 0
        caller = client.options(timeout=5, metadata={"user": "ada"})
        assert (await caller.call("metadata"))["user"] == "ada"
        assert await asyncio.gather(*(client.call("add", a=n) for n in range(200))) == [n + 1.0 for n in range(200)]
        await raised(ValueError, client.call("fail", message="no"))
        assert "`stream" in str(await raised(UnsupportedError, client.call("count", n=1)))
        assert repr(client) == f"<AsyncClient {daemon.address}>"

    run(daemon, scenario)


def test_variables(daemon: Daemon) -> None:
    async def scenario(client: AsyncClient) -> None:
        session = await client.session("variables", ttl=60, metadata={"user": "ada"})
        info = await session.info()
        assert (info["ttl"], info["metadata"]["user"], session.session_id) == (60.0, "ada", "variables")
        created = await session.register_variable("rate", "float", 0.5, {"min": 0, "max": 1}, {"unit": "1/s"})
        assert created == (await session.variable("rate")).id
        await raised(AlreadyExistsError, session.register_variable("rate", "float", 0.5))
        assert await session.set_variable("rate", 0.25, expected_version=0) == 1
        conflict = await raised(VersionConflictError, session.set_variable("rate", 0.5, expected_version=0))
        assert (conflict.expected, conflict.actual) == (0, 1)
        await raised(ValidationError, session.set_variable("rate", 2.0))
        await raised(VariableNotFoundError, session.set_variable("missing", 1))
        await raised(VariableNotFoundError, session.get_variable("missing"))
        assert await session.get("missing", 7) == 7
        assert (await session.contains("rate"), await session.contains("missing")) == (True, False)
        await session.set("n", 1)
        await session.set("n", 2)
        assert await session.get_variables(["rate", "n"]) == {"rate": 0.25, "n": 2}
        await raised(VariableNotFoundError, session.get_variables(["rate", "missing"]))
        assert await session.update("n", lambda n: n + 1) == 3
        assert await session.set_variables({"rate": 0.75, "n": 4}) == {"rate": 2, "n": 3}
        error = await raised(BatchError, session.set_variables({"rate": 5.0, "n": 5}, atomic=False))
        assert (list(error.errors), error.versions) == (["rate"], {"n": 4})
        async with session.batch_updates() as batch:
            batch["n"] = 6
            batch.set("rate", 0.5, expected_version=2)
        assert batch.versions == {"n": 5, "rate": 3}
        await raised(KeyError, abandoned_batch(session))
        assert [variable.name for variable in await session.list_variables("*")] == ["n", "rate"]
        assert [version.value for version in await session.variable_history("n", 2)] == [6, 5]
        assert (await session.rollback_variable("n", 0)).value == 1
        weights = np.arange(6, dtype=np.float32).reshape(2, 3)
        await session.set("weights", weights)
        assert (await session.get_variable("weights") == weights).all()
        # The form of a long list depends on the type of the variable, for which the client asks the host.
        await session.register_variable("embedding", "embedding", [0.5])
        numbers = [float(n) / 3 for n in range(5000)]
        await session.set("embedding", numbers)
        assert await session.get_variable("embedding") == numbers
        await session.set_variables({"embedding": [*numbers, 1.0]})
        assert (await session.get_variable("embedding"))[-1] == 1.0
        await raised(BatchError, session.set_variables({"no": numbers}))
        await session.delete_variable("n")
        await raised(VariableNotFoundError, session.delete_variable("n"))
        assert await session.call("echo", value=1) == 1
        await session.delete()
        await raised(NotFoundError, session.info())

    run(daemon, scenario)


def test_concurrent_updates_lose_nothing(daemon: Daemon) -> None:
    async def scenario(client: AsyncClient) -> None:
        session = await client.session("updates")
        await session.set("n", 0)
        await asyncio.gather(*(session.update("n", lambda n: n + 1) for _ in range(30)))
        assert await session.get("n") == 30

        await raised(InvalidTypeError, session.update("n", 5))  # type: ignore[arg-type]
        with Client(daemon.address) as blocking_client:
            blocking = blocking_client.session("updates")

            def conflict(value: int) -> int:
                # Each attempt of the update conflicts with this write.
                blocking.set_variable("n", value + 1)
                return value

            await raised(VersionConflictError, session.update("n", conflict, retries=2))
            assert await session.get("n") == 33
            limited = session.options(timeout=0.5)
            with pytest.raises((VersionConflictError, DeadlineExceededError)):
                await limited.update("n", conflict)

    run(daemon, scenario)


def test_watches(daemon: Daemon) -> None:
    async def scenario(client: AsyncClient) -> None:
        session = await client.session("watches")
        await session.set("n", 0)
        async with await session.watch("n", initial=True) as updates:
            first = await anext(updates)
            assert (first.kind, first.variable and first.variable.value) == ("initial", 0)
            waiting = asyncio.ensure_future(anext(updates))
            await session.set("n", 1)
            assert (await waiting).kind == "set"
        await raised(StopAsyncIteration, anext(updates))
        await raised(VariableNotFoundError, session.watch("missing"))
        await raised(InvalidTypeError, session.watch(5))  # type: ignore[arg-type]

    run(daemon, scenario)


def test_programs(daemon: Daemon) -> None:
    async def scenario(client: AsyncClient) -> None:
        session = await client.session("programs")
        programs = session.programs
        assert await programs.put("model", pickle.dumps([1, 2]), {"kind": "list"})
        assert not await programs.put("model", pickle.dumps([1, 2, 3]))
        assert pickle.loads(await programs.get("model")) == [1, 2, 3]  # noqa: S301
        model = await programs.cached("model", pickle.loads)
        assert model == [1, 2, 3]
        assert await programs.cached("model", pickle.loads) is model
        await programs.put("model", pickle.dumps([4]))
        assert await programs.cached("model", pickle.loads) == [4]
        await programs.put("array", np.zeros(3))
        assert (await programs.get("array") == np.zeros(3)).all()
        assert await programs.names() == ["array", "model"]
        assert (await programs.contains("model"), await programs.contains("other")) == (True, False)
        await programs.delete("model")
        await raised(ProgramNotFoundError, programs.get("model"))
        await raised(ProgramNotFoundError, programs.cached("model"))
        await raised(ProgramNotFoundError, programs.delete("model"))
        assert await client.global_programs.put("shared", b"x", ttl=60)
        assert await session.global_programs.get("shared") == b"x"
        assert await client.global_programs.names() == ["shared"]
        await client.global_programs.delete("shared")

    run(daemon, scenario)


def test_reports(daemon: Daemon) -> None:
    async def scenario(client: AsyncClient) -> None:
        lines: list[str] = []
        progress: list[float | None] = []
        caller = client.options(
            logs=lambda line: lines.append(line.text), progress=lambda report: progress.append(report.fraction)
        )
        assert await caller.call("report", lines=3) == 3
        assert len(lines) == 3
        assert progress[-1] == 1.0

    run(daemon, scenario)


def test_a_cancelled_task_cancels_its_call(daemon: Daemon, tmp_path: Path) -> None:
    async def scenario(client: AsyncClient) -> None:
        pipes = [daemons.Pipes(tmp_path, str(number)) for number in range(2)]
        before = (await client.status())["calls"]["cancelled"]
        calls = [asyncio.create_task(client.call("hold", **pipe.arguments)) for pipe in pipes]
        for pipe in pipes:
            await asyncio.to_thread(pipe.wait_started)
        queued = asyncio.create_task(client.call("add", a=1))
        for call in [*calls, queued]:
            call.cancel()
            await raised(asyncio.CancelledError, call)
        # Both workers serve again.
        assert [result async for result in client.map("add", [{"a": 1}] * 4)] == [2.0] * 4
        assert (await client.status())["calls"]["cancelled"] >= before + 2

    run(daemon, scenario)


def test_cancelled_requests_leave_no_waits(daemon: Daemon) -> None:
    async def scenario(client: AsyncClient) -> None:
        session = await client.session("cancelled")
        await session.set("n", 0)
        for steps in range(40):
            task = asyncio.create_task(session.get_variable("n") if steps % 2 else session.set_variable("n", steps))
            for _ in range(steps // 8):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(await session.watch("n"))
        assert await session.get("n") is not None

    run(daemon, scenario)


def test_timeouts(daemon: Daemon, tmp_path: Path) -> None:
    async def scenario(client: AsyncClient) -> None:
        pipes = daemons.Pipes(tmp_path)
        call = asyncio.create_task(client.options(timeout=0.5).call("hold", **pipes.arguments))
        await asyncio.to_thread(pipes.wait_started)
        assert (await raised(DeadlineExceededError, call)).may_have_run
        session = await client.session("timeouts")
        await session.set("n", 0)
        watch = await session.options(timeout=0.2).watch("n")
        await raised(DeadlineExceededError, anext(watch))

    run(daemon, scenario)


def test_closing(daemon: Daemon, tmp_path: Path) -> None:
    async def main() -> None:
        with daemons.Proxy(daemon) as proxy:
            client = AsyncClient(proxy.address)
            assert proxy.connections == 0
            session = await client.session("closing")
            await session.set("n", 0)
            watch = await session.watch("n")
            pipes = daemons.Pipes(tmp_path)
            call = asyncio.create_task(client.call("hold", **pipes.arguments))
            await asyncio.to_thread(pipes.wait_started)
            await client.close()
            for request in (session.get_variable("n"), anext(watch), client.call("add", a=1), client.connect()):
                await raised(ClientClosedError, request)
            await client.close(timeout=0)
            assert (await raised(ClientClosedError, call)).may_have_run
            await asyncio.to_thread(proxy.wait_closed)
            await raised(ClientClosedError, client.wait_ready(1))
            await raised(InvalidArgumentError, client.close(timeout=-1))

    asyncio.run(main())


def test_one_client_serves_several_event_loops(daemon: Daemon) -> None:
    client = AsyncClient(daemon.address)
    sessions: list[AsyncSession] = []

    async def use(number: int) -> None:
        session = await client.session("loops")
        sessions.append(session)
        await session.set("n", number)
        assert await sessions[0].get("n") == number
        assert await client.call("add", a=number) == number + 1

    for number in range(20):
        asyncio.run(use(number))
    asyncio.run(client.close())


def test_an_event_loop_may_be_closed_while_calls_run(daemon: Daemon, tmp_path: Path) -> None:
    client = AsyncClient(daemon.address)
    pipes = daemons.Pipes(tmp_path)
    loop = asyncio.new_event_loop()

    async def begin() -> asyncio.Task[Any]:
        task = asyncio.ensure_future(client.call("hold", **pipes.arguments))
        await asyncio.to_thread(pipes.wait_started)
        return task

    task = loop.run_until_complete(begin())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    # The call ends after the loop, which nothing wakes any more.
    pipes.finish()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.run_until_complete(task)
    coroutine = task.get_coro()
    assert coroutine is not None
    coroutine.close()
    del task, loop, coroutine
    gc.collect()

    async def use() -> None:
        assert await client.call("add", a=1) == 2.0
        await client.close()

    asyncio.run(use())


def test_requests_outside_of_an_event_loop_are_rejected(daemon: Daemon) -> None:
    client = AsyncClient(daemon.address)
    with pytest.raises(RuntimeError, match="no running event loop"):
        client.call("add", a=1).send(None)
    with pytest.raises(RuntimeError, match="no running event loop"):
        client.tools().send(None)


def test_an_unreachable_host(tmp_path: Path) -> None:
    async def main() -> None:
        client = AsyncClient(f"unix:{tmp_path}/missing")
        for request in (client.call("add", a=1), client.connect(), client.tools(), client.session("s")):
            assert (await raised(HostUnavailableError, request)).is_retryable
        with pytest.raises(HostUnavailableError):
            async with client:
                raise AssertionError

    asyncio.run(main())
