"""Callbacks of the event loop. Those of one call neither run in the next call nor fail it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snakepit_bridge._event_loop import EventLoop


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    loop.modules = frozenset({__name__})
    yield loop
    loop.close()


def _poll(fd: int, seen: list[bytes]) -> None:
    seen.append(os.read(fd, 1))


def exit_by_timer(running: asyncio.AbstractEventLoop) -> None:
    running.call_later(0.01, sys.exit, 3)


def exit_by_reader(running: asyncio.AbstractEventLoop) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x")
    running.add_reader(reading, sys.exit, 3)


def exit_by_own_reader(running: asyncio.AbstractEventLoop) -> None:
    def read() -> None:
        raise SystemExit(3)

    reading, writing = os.pipe()
    os.write(writing, b"x")
    running.add_reader(fd=reading, callback=read)


def exit_by_callback(running: asyncio.AbstractEventLoop) -> None:
    running.call_soon(running.call_soon, running.call_soon, sys.exit, 3)


def exit_by_thread(running: asyncio.AbstractEventLoop) -> None:
    threading.Timer(0.01, running.call_soon_threadsafe, (sys.exit, 3)).start()


def exit_by_signal(running: asyncio.AbstractEventLoop) -> None:
    running.add_signal_handler(signal.SIGURG, sys.exit, 3)
    threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGURG)).start()


@pytest.mark.parametrize(
    "leave",
    [exit_by_timer, exit_by_reader, exit_by_own_reader, exit_by_callback, exit_by_thread, exit_by_signal],
)
def test_a_callback_of_an_ended_call_fails_no_other_call(
    loop: EventLoop, leave: Callable[[asyncio.AbstractEventLoop], object]
) -> None:
    async def call() -> None:
        leave(asyncio.get_running_loop())

    loop.run(call())
    assert loop.end_call()
    assert loop.run(asyncio.sleep(0.05, "next")) == "next"
    assert loop.end_call()
    assert loop.run(asyncio.sleep(0, "last")) == "last"
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL or leave is not exit_by_signal


def test_callbacks_that_schedule_callbacks_end_with_their_call(loop: EventLoop) -> None:
    ticks: list[str] = []

    def tick(running: asyncio.AbstractEventLoop, name: str) -> None:
        ticks.append(name)
        if name == "soon":
            running.call_soon(tick, running, name)
        elif name == "detached":
            running.call_soon(tick, running, name, context=contextvars.Context())
        elif name == "repeated":
            running.call_soon_threadsafe(tick, running, name, context=contextvars.Context())
        else:
            running.call_later(0.001, tick, running, name)

    async def call(name: str) -> None:
        tick(asyncio.get_running_loop(), name)

    loop.run(call("worker"), keep_tasks=True)
    for name in ("soon", "detached", "repeated", "later"):
        loop.run(call(name))
        assert loop.end_call()
        ticks.clear()
        loop.run(asyncio.sleep(0.02))
        assert loop.end_call()
        assert set(ticks) == {"worker"}


def test_callbacks_of_other_threads_survive_the_end_of_a_call(loop: EventLoop) -> None:
    """A worker task may wait for such a callback."""
    sent: list[int] = []
    received: list[int] = []

    def tick(running: asyncio.AbstractEventLoop) -> None:
        sent.append(len(sent))
        thread = threading.Thread(target=running.call_soon_threadsafe, args=(received.append, sent[-1]))
        thread.start()
        thread.join()
        running.call_soon(tick, running, context=contextvars.Context())

    async def call() -> None:
        tick(asyncio.get_running_loop())

    loop.run(call())
    assert loop.end_call()
    loop.run(asyncio.sleep(0.01))
    assert received == sent


def test_a_reader_of_a_library_replaces_that_of_a_call(loop: EventLoop) -> None:
    reading, writing = os.pipe()
    seen: list[bytes] = []
    poll = types.FunctionType(_poll.__code__, {"__name__": "library", "os": os})

    async def call() -> None:
        running = asyncio.get_running_loop()
        running.add_reader(reading, seen.append, b"call")
        running.add_reader(reading, poll, reading, seen)

    loop.run(call())
    assert loop.end_call()
    os.write(writing, b"x")
    loop.run(asyncio.sleep(0.01))
    assert seen == [b"x"]


@pytest.mark.parametrize(("how", "expected"), [("plain", [b"x"]), ("library", []), ("other file", [])])
def test_a_reader_of_the_worker_is_restored_after_a_call_removed_it(
    loop: EventLoop, how: str, expected: list[bytes]
) -> None:
    reading, writing = os.pipe()
    other, other_writing = os.pipe()
    seen: list[bytes] = []
    poll = types.FunctionType(_poll.__code__, {"__name__": "library" if how == "library" else __name__, "os": os})

    async def watch() -> None:
        asyncio.get_running_loop().add_reader(reading, poll, reading, seen)

    async def call() -> None:
        asyncio.get_running_loop().remove_reader(reading)
        if how == "other file":
            os.dup2(other, reading)

    loop.run(watch(), keep_tasks=True)
    loop.run(call())
    assert loop.end_call()
    os.write(other_writing if how == "other file" else writing, b"x")
    loop.run(asyncio.sleep(0.01))
    assert seen == expected


def test_readers_of_libraries_and_the_worker_survive_the_end_of_a_call(loop: EventLoop) -> None:
    """Calls may share a client, and no call would start its poller again."""
    pipes = {name: os.pipe() for name in ("library", "worker", "call")}
    seen: list[str] = []

    def read(fd: int, name: str) -> None:
        os.read(fd, 1)
        seen.append(name)

    theirs: Any = types.FunctionType(read.__code__, {"__name__": "library", "os": os}, closure=read.__closure__)

    async def watch(name: str) -> None:
        running = asyncio.get_running_loop()
        fd = pipes[name][0]
        if name == "library":
            running.add_reader(fd, functools.partial(theirs, fd), name)
        else:
            running.add_reader(fd, read, fd, name)

    loop.run(watch("worker"), keep_tasks=True)
    loop.run(watch("library"))
    loop.run(watch("call"))
    assert loop.end_call()
    for _, writing in pipes.values():
        os.write(writing, b"x")
    loop.run(asyncio.sleep(0.01))
    assert sorted(seen) == ["library", "worker"]


def test_connections_outlive_the_call_that_opened_them(loop: EventLoop) -> None:
    ours, theirs = socket.socketpair()

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(sock=ours)

    async def use(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
        theirs.sendall(b"answer\n")
        answer = await streams[0].readline()
        streams[1].close()
        await streams[1].wait_closed()
        return answer

    streams = loop.run(connect())
    assert loop.end_call()
    assert loop.run(use(streams)) == b"answer\n"
    theirs.close()


def test_a_signal_handler_of_the_worker_is_restored(loop: EventLoop) -> None:
    received: list[str] = []

    async def handle(name: str) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGURG, received.append, name)

    loop.run(handle("worker"), keep_tasks=True)
    loop.run(handle("call"))
    assert loop.end_call()
    os.kill(os.getpid(), signal.SIGURG)
    loop.run(asyncio.sleep(0.01))
    assert received == ["worker"]


def test_end_call_returns_none_if_it_would_have_to_wait(loop: EventLoop) -> None:
    async def linger() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.01)

    tasks: list[asyncio.Task[None]] = []

    async def call() -> None:
        tasks.append(asyncio.ensure_future(linger()))
        await asyncio.sleep(0)

    loop.run(call())
    assert loop.end_call(may_wait=False) is None
    assert not tasks[0].done()
    assert loop.end_call() is True
    assert tasks[0].done()
    assert loop.end_call(may_wait=False) is True
