"""The event loop: what one call starts never runs on into the next."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from snakepit_bridge._event_loop import EventLoop
from snakepit_bridge.errors import CallCancelled


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


def test_tasks_that_a_call_left_are_cancelled(loop: EventLoop) -> None:
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
    assert ended == ["background"]


def test_tasks_that_are_to_be_kept_go_on_with_the_next_call(loop: EventLoop) -> None:
    ticks: list[int] = []

    async def ticker() -> None:
        while True:
            ticks.append(1)
            await asyncio.sleep(0)

    async def start() -> asyncio.Task[None]:
        return asyncio.ensure_future(ticker())

    resident = loop.run(start(), keep_tasks=True)
    before = len(ticks)
    loop.run(asyncio.sleep(0.01))
    assert len(ticks) > before
    assert not resident.done()
    loop.close()
    assert resident.cancelled()


def test_an_interrupt_cancels_the_task(loop: EventLoop) -> None:
    interrupt_soon(lambda: loop.interrupt())

    async def call() -> None:
        await asyncio.sleep(600)

    with pytest.raises(asyncio.CancelledError):
        loop.run(call())


def test_a_coroutine_that_blocks_the_loop_can_be_interrupted_by_an_exception(loop: EventLoop) -> None:
    def handler() -> None:
        if not loop.interrupt():
            raise CallCancelled

    interrupt_soon(handler, times=200)

    async def call() -> None:
        # Never lets the loop hear of the cancellation: only an exception ends this.
        threading.Event().wait(60)

    with pytest.raises(CallCancelled):
        loop.run(call())
    assert loop.run(asyncio.sleep(0, "next")) == "next"


def test_nothing_runs_nothing_is_interrupted(loop: EventLoop) -> None:
    assert not loop.interrupt()


def interrupt_soon(handler: Callable[[], object], times: int = 1) -> None:
    """Call a function from a signal handler, as the runtime does."""
    main = threading.main_thread().ident
    assert main is not None
    stop = threading.Event()

    def handle(signum: int, frame: object) -> None:
        try:
            handler()
        except BaseException:
            stop.set()
            raise

    signal.signal(signal.SIGURG, handle)

    def knock() -> None:
        for _ in range(times):
            if stop.wait(0.02):
                return
            signal.pthread_kill(main, signal.SIGURG)

    threading.Thread(target=knock, daemon=True).start()
