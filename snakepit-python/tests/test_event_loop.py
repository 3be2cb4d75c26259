"""The event loop. Work that one call starts does not run in the next call."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from snakepit_bridge import _running_loop, worker_task
from snakepit_bridge._event_loop import EventLoop
from snakepit_bridge.errors import CallCancelled


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


def test_tasks_of_an_ended_call_are_cancelled_and_logged(loop: EventLoop, capsys: pytest.CaptureFixture[str]) -> None:
    ended: list[str] = []

    async def background() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("background")

    async def call() -> int:
        task = asyncio.ensure_future(background())
        await asyncio.sleep(0)
        assert not task.done()
        return 1

    assert loop.run(call()) == 1
    # Tasks run until the end of the call, because its cleanup may need them.
    assert ended == []
    assert loop.end_call()
    assert ended == ["background"]
    assert "`Task-" in (logged := capsys.readouterr().err)
    assert "background" in logged
    assert "worker_task" in logged


def test_worker_tasks_run_during_the_next_call(loop: EventLoop) -> None:
    ticks: list[int] = []

    async def ticker() -> None:
        while True:
            ticks.append(1)
            await asyncio.sleep(0)

    async def start() -> asyncio.Task[None]:
        return asyncio.ensure_future(ticker())

    task = loop.run(start(), keep_tasks=True)
    before = len(ticks)
    loop.run(asyncio.sleep(0.01))
    assert len(ticks) > before
    assert not task.done()
    loop.close()
    assert task.cancelled()


def test_an_interrupt_cancels_the_task(loop: EventLoop) -> None:
    interrupt_soon(loop.interrupt)

    async def call() -> None:
        await asyncio.sleep(600)

    with pytest.raises(asyncio.CancelledError):
        loop.run(call())


def block_in_a_selector() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, selectors.DefaultSelector() as selector:
        selector.register(ours, selectors.EVENT_READ)
        selector.select(60)


@pytest.mark.parametrize("block", [lambda: threading.Event().wait(60), block_in_a_selector])
def test_a_coroutine_that_blocks_the_loop_can_be_interrupted_by_an_exception(
    loop: EventLoop, block: Callable[[], object]
) -> None:
    def handler(frame: FrameType | None) -> None:
        if loop.interrupt(frame) is False:
            raise CallCancelled

    interrupt_soon(handler, times=200)

    async def call() -> None:
        # Blocks the loop, so only an exception ends the coroutine.
        block()

    with pytest.raises(CallCancelled):
        loop.run(call())
    assert loop.run(asyncio.sleep(0, "next")) == "next"


def test_an_interrupt_of_the_code_of_the_loop_leaves_the_cancellation_to_the_loop(loop: EventLoop) -> None:
    answers: list[bool | None] = []

    async def call() -> None:
        running: Any = asyncio.get_running_loop()
        selector = running._selector

        def select(timeout: float | None) -> Any:
            del selector.select
            answers.extend(loop.interrupt(sys._getframe()) for _ in range(3))
            return selector.select(timeout)

        # The loop calls it between two steps.
        selector.select = select
        await asyncio.sleep(600)

    with pytest.raises(asyncio.CancelledError):
        loop.run(call())
    assert answers == [True, None, None]


def test_an_interrupt_of_code_of_asyncio_that_a_coroutine_called_raises_nothing(loop: EventLoop) -> None:
    answers: list[bool | None] = []

    class Observed:
        def get_debug(self) -> bool:
            frame = sys._getframe(1)
            assert frame.f_globals["__name__"] == "asyncio.futures"
            answers.extend(loop.interrupt(frame) for _ in range(3))
            return False

    async def call() -> None:
        future: Any = asyncio.futures
        future._PyFuture(loop=Observed())
        await asyncio.sleep(600)

    with pytest.raises(asyncio.CancelledError):
        loop.run(call())
    assert answers == [True, None, None]


def test_an_interrupt_before_the_task_starts_cancels_it(loop: EventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[bool | None] = []
    set_event_loop = asyncio.set_event_loop

    def interrupted(running: Any) -> None:
        answers.append(loop.interrupt(sys._getframe()))
        set_event_loop(running)

    loop.run(asyncio.sleep(0))
    monkeypatch.setattr(asyncio, "set_event_loop", interrupted)
    with pytest.raises(asyncio.CancelledError):
        loop.run(asyncio.sleep(600))
    assert answers == [True]
    # It does not reach the next coroutine.
    monkeypatch.undo()
    assert loop.run(asyncio.sleep(0, "next")) == "next"


def test_an_interrupt_after_the_task_has_ended_changes_nothing(loop: EventLoop) -> None:
    answers: list[bool | None] = []

    async def call() -> str:
        asyncio.get_running_loop().call_soon(lambda: answers.append(loop.interrupt(sys._getframe())))
        return "done"

    assert loop.run(call()) == "done"
    assert answers == [None]


@pytest.mark.parametrize("how", ["exit", "stop", "exit in a callback", "stop from outside"])
def test_a_requested_stop_does_not_reach_the_next_call(loop: EventLoop, how: str) -> None:
    async def call() -> None:
        running = asyncio.get_running_loop()
        if how == "exit":
            raise SystemExit(3)
        if how == "exit in a callback":
            running.call_soon(exit, 3)
            await asyncio.sleep(600)
        running.stop()

    async def following() -> str:
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0
        return "next"

    if how == "stop from outside":
        loop.run(asyncio.sleep(0))
        asyncio.get_event_loop_policy().get_event_loop().stop()
    elif how == "stop":
        loop.run(call())
    else:
        with pytest.raises(SystemExit):
            loop.run(call())
    assert loop.end_call()
    assert loop.run(following()) == "next"


def test_the_settings_of_the_loop_are_restored_after_a_call(loop: EventLoop) -> None:
    from concurrent.futures import ThreadPoolExecutor

    async def settings() -> tuple[object, ...]:
        running: Any = asyncio.get_running_loop()
        name = await running.run_in_executor(None, lambda: threading.current_thread().name.split("_")[0])
        return (running.get_exception_handler(), running.get_debug(), running.get_task_factory(), name)

    def ignore(*_: object) -> None: ...

    pool = ThreadPoolExecutor(1, "mine")

    async def change() -> None:
        running: Any = asyncio.get_running_loop()
        running.set_exception_handler(ignore)
        running.set_debug(True)
        running.set_task_factory(lambda loop, coro, **more: asyncio.Task(coro, loop=loop, **more))
        running.set_default_executor(pool)

    async def shut_down() -> None:
        await asyncio.get_running_loop().shutdown_default_executor()

    before = loop.run(settings())
    assert loop.end_call()
    loop.run(change())
    assert loop.end_call()
    assert loop.run(settings()) == before
    assert loop.end_call()
    loop.run(shut_down())
    assert loop.end_call()
    assert loop.run(settings()) == before
    pool.shutdown()


def test_the_next_call_has_a_loop_after_a_call_closed_or_removed_it(loop: EventLoop) -> None:
    loop.run(asyncio.sleep(0))
    asyncio.get_event_loop_policy().get_event_loop().close()
    assert loop.end_call()
    assert loop.run(asyncio.sleep(0, 1)) == 1
    # `asyncio.run` leaves the thread without a loop.
    asyncio.run(asyncio.sleep(0))
    assert loop.run(asyncio.sleep(0, asyncio.get_event_loop_policy().get_event_loop)).__name__ == "get_event_loop"
    asyncio.get_event_loop_policy().get_event_loop()


def test_open_generators_are_closed_at_the_end_of_the_call(loop: EventLoop) -> None:
    closed: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append("numbers")

    references: list[object] = []

    async def call() -> None:
        generator = numbers()
        references.append(generator)
        assert await anext(generator) == 1

    loop.run(call())
    assert loop.end_call()
    assert closed == ["numbers"]


def test_end_call_returns_false_if_a_task_does_not_end(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_running_loop, "_END_WITHIN", 0.05)
    stop = False

    async def stubborn() -> None:
        while not stop:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(600)

    references: list[object] = []

    async def call() -> None:
        references.append(asyncio.ensure_future(stubborn()))
        await asyncio.sleep(0)

    loop.run(call())
    assert not loop.end_call()
    assert "stubborn" in capsys.readouterr().err
    stop = True


def test_worker_tasks_and_their_child_tasks_outlive_the_call(loop: EventLoop) -> None:
    mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="none")
    seen: list[str] = []
    announced: list[bool] = []
    loop._on_worker_task = lambda: announced.append(True)

    async def child() -> None:
        await asyncio.sleep(600)

    async def batcher() -> None:
        seen.append(mark.get())
        task = asyncio.ensure_future(child())
        await task

    async def call() -> asyncio.Task[None]:
        mark.set("of the call")
        task = worker_task(batcher(), name="batcher")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return task

    task = loop.run(call())
    assert loop.end_call()
    loop.run(asyncio.sleep(0))
    assert loop.end_call()
    assert (task.done(), task.get_name(), seen, announced) == (False, "batcher", ["none"], [True])
    loop.close()
    assert task.cancelled()


def test_a_worker_task_outside_a_worker_is_a_plain_task() -> None:
    async def main() -> int:
        return await worker_task(asyncio.sleep(0, 7))

    assert asyncio.run(main()) == 7


def test_coroutines_of_one_call_share_a_context(loop: EventLoop) -> None:
    mark: contextvars.ContextVar[int] = contextvars.ContextVar("mark", default=0)

    async def put(value: int) -> None:
        mark.set(value)

    async def get() -> int:
        return mark.get()

    loop.run(put(7))
    assert loop.run(get()) == 7
    assert loop.end_call()
    assert loop.run(get()) == 0


def test_turns_run_the_loop_between_calls(loop: EventLoop) -> None:
    ticks: list[int] = []

    async def ticker() -> None:
        while True:
            ticks.append(1)
            await asyncio.sleep(0.01)

    async def start() -> None:
        await asyncio.sleep(0)
        tasks.append(asyncio.ensure_future(ticker()))

    tasks: list[asyncio.Task[None]] = []
    loop.run(start(), keep_tasks=True)
    assert loop.fileno() >= 0
    while len(ticks) < 3:
        more = loop.turn()
        assert more is not None
        assert more <= 0.01
        time.sleep(more)


def test_interrupt_returns_false_if_no_coroutine_runs(loop: EventLoop) -> None:
    assert loop.interrupt(sys._getframe()) is False


def interrupt_soon(handler: Callable[[FrameType | None], object], times: int = 1) -> None:
    """Call a function from a signal handler, as the runtime does."""
    main = threading.main_thread().ident
    assert main is not None
    stop = threading.Event()

    def handle(signum: int, frame: FrameType | None) -> None:
        try:
            handler(frame)
        except BaseException:
            stop.set()
            raise

    signal.signal(signal.SIGURG, handle)

    def send_signals() -> None:
        for _ in range(times):
            if stop.wait(0.02):
                return
            signal.pthread_kill(main, signal.SIGURG)

    threading.Thread(target=send_signals, daemon=True).start()
