"""Tools whose calls run together in one worker, and show whether they do."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from snakepit_bridge import BaseAdapter, CallCancelled, DeadlockError, tool, worker_task

_VALUE: ContextVar[int] = ContextVar("value")


class _Recorder(BaseAdapter):
    """Records the begin and the end of calls."""

    @classmethod
    async def process_init(cls) -> None:
        cls.process.events = []
        cls.process.barriers = {}
        cls.process.running = cls.process.most = cls.process.ticks = cls.process.produced = 0
        worker_task(cls._tick())

    @classmethod
    def process_exit(cls) -> None:
        path = os.environ.get("SNAKEPIT_TEST_EXIT")
        if path:
            Path(path).write_text(f"{cls.process.running} of {cls.process.most}", encoding="utf-8")

    @classmethod
    async def _tick(cls) -> None:
        while True:
            await asyncio.sleep(0.005)
            cls.process.ticks += 1

    @tool
    async def events(self) -> list[str]:
        return list(self.process.events)

    @tool
    async def counts(self) -> dict[str, int]:
        process = self.process
        return {"most": process.most, "ticks": process.ticks, "produced": process.produced, "pid": os.getpid()}

    @tool
    async def pause(self, seconds: float) -> float:
        process = self.process
        process.running += 1
        process.most = max(process.most, process.running)
        try:
            await asyncio.sleep(seconds)
        finally:
            process.running -= 1
        return seconds


class Overlapping(_Recorder):
    concurrency = 20

    async def _meet(self, count: int) -> None:
        """Wait until this many calls run together."""
        await self.process.barriers.setdefault(count, asyncio.Barrier(count)).wait()

    @tool
    async def meet(self, count: int) -> int:
        await self._meet(count)
        return os.getpid()

    @tool
    async def isolated(self, value: int, count: int) -> list[Any]:
        """Return the variable of this call and its session, after other calls have set theirs."""
        _VALUE.set(value)
        await self._meet(count)
        await asyncio.gather(*(asyncio.sleep(0.001) for _ in range(3)))
        return [_VALUE.get(), self.session_context.session_id]

    @tool
    async def fail(self, text: str, count: int) -> None:
        await self._meet(count)
        raise LookupError(text)

    @tool
    async def exit(self, count: int) -> None:
        await self._meet(count)
        raise SystemExit(3)

    @tool
    async def hang(self, name: str) -> None:
        self.process.events.append(f"began {name}")
        try:
            await asyncio.Event().wait()
        finally:
            self.process.events.append(f"ended {name}")

    @tool
    async def numbers(self, count: int) -> AsyncIterator[int]:
        """Yield without ever waiting."""
        for number in range(count):
            yield number

    @tool
    def plain_numbers(self, count: int) -> Iterator[int]:
        yield from range(count)

    @tool
    async def blocks(self, count: int) -> AsyncIterator[str]:
        try:
            for _ in range(count):
                self.process.produced += 1
                yield "x" * 65_536
        finally:
            self.process.events.append("closed")

    @tool
    def block(self, seconds: float) -> float:
        self.process.events.append("began block")
        time.sleep(seconds)
        return seconds

    @tool
    async def block_loop(self) -> str:
        """Block the event loop in a coroutine, until the call is cancelled."""
        self.process.events.append("began block_loop")
        try:
            while True:
                time.sleep(0.01)
        except CallCancelled:
            self.process.events.append("interrupted")
            raise

    @tool(after_cancel="replace")
    def block_and_replace(self) -> None:
        self.process.events.append("began block_and_replace")
        while True:
            time.sleep(0.01)

    @tool
    def stick(self) -> None:
        """Run C code that does not notice signals."""
        self.process.events.append("began stick")
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

    @tool
    async def die(self, text: str) -> None:
        print(text, flush=True)
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGKILL)

    @tool
    async def chat(self, text: str, count: int) -> None:
        await self._meet(count)
        print(text, flush=True)
        await asyncio.sleep(600)

    @tool
    async def leave(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, self.process.events.append, "the timer ran")
        self.task = asyncio.ensure_future(self.hang("leftover"))
        await asyncio.sleep(0.005)

    @tool
    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        return await self.session_context.call_tool_async(name, **arguments)

    @tool
    async def descend(self, depth: int) -> int:
        """Call this tool until no place is free, and return the number of calls."""
        try:
            return 1 + await self.session_context.call_tool_async("descend", depth=depth + 1)
        except DeadlockError:
            return 1

    @tool
    def call_plain(self, name: str) -> str:
        try:
            return str(self.session_context.call_tool(name))
        except DeadlockError as error:
            return str(error)

    @tool(concurrency=2)
    async def narrow(self) -> int:
        process = self.process
        process.running += 1
        process.most = max(process.most, process.running)
        await asyncio.sleep(0.01)
        process.running -= 1
        return int(process.most)


class Wide(_Recorder):
    """Only one tool overlaps."""

    @tool(concurrency=8)
    async def meet(self, count: int) -> int:
        await self.process.barriers.setdefault(count, asyncio.Barrier(count)).wait()
        return os.getpid()


class Threaded(_Recorder):
    threads = 4

    @tool
    def meet(self, count: int) -> str:
        barrier = self.process.barriers.setdefault(count, threading.Barrier(count))
        barrier.wait()
        return threading.current_thread().name

    @tool
    def isolated(self, value: int) -> list[Any]:
        _VALUE.set(value)
        self.meet(4)
        return [_VALUE.get(), self.session_context.session_id]

    @tool
    def fail(self, text: str) -> None:
        raise LookupError(text)

    @tool
    def spin(self, name: str) -> None:
        self.process.events.append(f"began {name}")
        try:
            while True:
                time.sleep(0.005)
        finally:
            # Interruptions do not reach this block.
            time.sleep(0.3)
            self.process.events.append(f"ended {name}")

    @tool
    def numbers(self, count: int) -> Iterator[int]:
        yield from range(count)

    @tool
    def call_plain(self, name: str) -> Any:
        return self.session_context.call_tool(name)
