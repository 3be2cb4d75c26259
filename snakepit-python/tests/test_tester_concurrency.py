"""A tester of an adapter whose calls run together."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from snakepit_bridge import BaseAdapter, CallCancelled, DeadlineExceededError, tool
from snakepit_bridge.errors import CallCancelledError, ToolFailed
from snakepit_bridge.testing import ToolTester


class Overlapping(BaseAdapter):
    concurrency = 8
    events: list[str] = []  # noqa: RUF012

    @classmethod
    @contextlib.asynccontextmanager
    async def lifespan(cls) -> AsyncIterator[dict[str, Any]]:
        cls.events = ["begin"]
        yield {"barrier": asyncio.Barrier(8), "loop": asyncio.get_running_loop()}
        cls.events.append("end")

    @tool
    async def meet(self, number: int) -> int:
        """Wait until eight calls run together."""
        assert asyncio.get_running_loop() is self.process.loop
        await self.process.barrier.wait()
        return number

    @tool
    async def fail(self, number: int) -> None:
        await self.process.barrier.wait()
        raise LookupError(f"no {number}")

    @tool
    async def hang(self) -> None:
        self.events.append("hangs")
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.05)
            self.events.append("cleaned up")

    @tool
    async def numbers(self) -> AsyncIterator[int]:
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            self.events.append("closed")

    @tool
    def plain(self, number: int) -> int:
        return number

    @tool
    async def outer(self) -> int:
        return int(await self.session_context.call_tool_async("plain", number=7))

    @tool
    async def host(self) -> int:
        return int(await self.session_context.call_host_tool_async("add", a=1))


@pytest.fixture
def tester() -> Iterator[ToolTester]:
    with ToolTester(Overlapping, host_tools={"add": lambda a: a + 1}) as tester:
        yield tester
    assert Overlapping.events[-1] == "end"


def test_calls_of_tasks_run_together(tester: ToolTester) -> None:
    async def gather() -> list[Any]:
        return await asyncio.gather(*(tester.call_async("meet", number=number) for number in range(8)))

    assert asyncio.run(gather()) == list(range(8))


def test_calls_of_threads_run_together_and_have_their_own_errors(tester: ToolTester) -> None:
    calls = [tester.start("fail", number=number) for number in range(8)]
    for number, call in enumerate(calls):
        with pytest.raises(ToolFailed, match=f"no {number}") as caught:
            call.result(20)
        assert isinstance(caught.value.__cause__, LookupError)
        assert str(caught.value.__cause__) == f"no {number}"


def test_a_deadline_and_a_cancellation_end_only_their_call(tester: ToolTester) -> None:
    calls = [tester.start("meet", number=number) for number in range(7)]
    with pytest.raises(DeadlineExceededError, match=r"0\.1 s"):
        tester.options(timeout=0.1).call("hang")
    # The cleanup has ended before the call.
    assert Overlapping.events == ["begin", "hangs", "cleaned up"]
    hanging = tester.start("hang")
    while Overlapping.events.count("hangs") < 2:
        time.sleep(0.01)
    hanging.cancel()
    with pytest.raises(CallCancelledError):
        hanging.result(20)
    assert not any(call.done() for call in calls)
    assert tester.call("meet", number=7) == 7
    assert [call.result(20) for call in calls] == list(range(7))


def test_plain_calls_streams_and_nested_calls(tester: ToolTester) -> None:
    assert tester.call("plain", number=3) == 3
    assert [chunk.data for chunk in tester.stream("numbers", limit=3)] == [0, 1, 2]
    assert Overlapping.events[-1] == "closed"
    assert tester.call("outer") == 7
    assert tester.call("host") == 2


class Threaded(BaseAdapter):
    threads = 4

    @classmethod
    def process_init(cls) -> None:
        cls.process.barrier = threading.Barrier(4)

    @tool
    def meet(self) -> str:
        self.process.barrier.wait(20)
        return threading.current_thread().name

    @tool
    def spin(self) -> None:
        try:
            while True:
                time.sleep(0.001)
        except CallCancelled:
            self.process.ended = True
            raise

    @tool
    def ended(self) -> bool:
        return bool(self.process.ended)


def test_plain_functions_run_in_threads() -> None:
    with ToolTester(Threaded) as tester:
        calls = [tester.start("meet") for _ in range(4)]
        assert len({call.result(20) for call in calls}) == 4
        with pytest.raises(DeadlineExceededError):
            tester.options(timeout=0.1).call("spin")
        assert tester.call("ended")


def test_an_adapter_that_cannot_start_fails_the_tester() -> None:
    class Broken(Overlapping):
        @classmethod
        def process_init(cls) -> None:
            raise LookupError("no model")

    with pytest.raises(Exception, match="no model"):
        ToolTester(Broken)


class Large:
    """Stands for the data of a tool."""


class Failing(BaseAdapter):
    threads = 2
    concurrency = 2
    data: list[weakref.ref[Large]] = []  # noqa: RUF012

    @tool
    def in_thread(self) -> None:
        large = Large()
        self.data.append(weakref.ref(large))
        raise LookupError("no")

    @tool
    async def in_task(self) -> None:
        large = Large()
        self.data.append(weakref.ref(large))
        raise LookupError("no")

    @tool
    async def succeed(self) -> None: ...


@pytest.mark.parametrize("name", ["in_thread", "in_task"])
def test_a_failed_call_leaves_nothing_for_the_garbage_collector(name: str) -> None:
    gc.collect()
    gc.disable()
    try:
        with ToolTester(Failing) as tester:
            with pytest.raises(LookupError):
                tester.call(name)
            # The tester keeps the last exception until the next call.
            tester.call("succeed")
            assert Failing.data[-1]() is None
    finally:
        gc.enable()


class Received(asyncio.Protocol):
    """Counts the bytes that a connection receives."""

    count = 0

    def data_received(self, data: bytes) -> None:
        self.count += len(data)


class Connected(BaseAdapter):
    concurrency = 2

    @tool
    async def connect(self) -> None:
        """Leave a connection behind that receives data in each turn of the loop."""
        ours, theirs = socket.socketpair()
        theirs.sendall(bytes(60_000))
        transport: Any
        transport, self.process.received = await asyncio.get_running_loop().create_connection(Received, sock=ours)
        transport.max_size = 1000
        self.process.ends = transport, theirs

    @tool
    async def receive(self) -> int:
        """Return the number of bytes after all of them have arrived, or after a few seconds."""
        transport, theirs = self.process.ends
        theirs.sendall(bytes(1000))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                while self.process.received.count < 61_000:
                    await asyncio.sleep(0.001)
        transport.close()
        theirs.close()
        return int(self.process.received.count)


def test_a_connection_outlives_the_call_that_opened_it() -> None:
    with ToolTester(Connected) as tester:
        tester.call("connect")
        assert tester.call("receive") == 61_000


class Ending(BaseAdapter):
    concurrency = 64

    #: The number of times that the callbacks of the loop were looked through.
    passes = 0

    @tool
    async def watch(self) -> None:
        """Count how often the callbacks of the loop are looked through, from now on."""

        class Ready(collections.deque[Any]):
            def __iter__(self) -> Iterator[Any]:
                Ending.passes += 1
                return super().__iter__()

        loop: Any = asyncio.get_running_loop()
        loop._ready = Ready(loop._ready)
        self.process.barrier = asyncio.Barrier(64)

    @tool
    async def meet(self) -> None:
        """End together with other calls."""
        await self.process.barrier.wait()


def test_calls_that_end_together_look_for_their_callbacks_together() -> None:
    with ToolTester(Ending) as tester:
        tester.call("watch")
        calls = [tester.start("meet") for _ in range(64)]
        for call in calls:
            call.result(20)
    assert 0 < Ending.passes < 20
