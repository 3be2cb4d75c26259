"""Tools whose calls compete for the places of one worker."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from snakepit_bridge import BaseAdapter, DeadlockError, SnakepitError, tool


class Crowded(BaseAdapter):
    concurrency = 4

    @tool
    async def pid(self) -> int:
        return os.getpid()

    @tool(concurrency=1)
    async def alone(self, depth: int) -> Any:
        """Call this tool again, and return the pid of the innermost call."""
        if depth == 0:
            return os.getpid()
        try:
            return await self.session_context.call_tool_async("alone", depth=depth - 1)
        except DeadlockError as error:
            return str(error)

    @tool
    def ask(self, name: str) -> Any:
        """Call a host tool, and block the event loop until it ends."""
        try:
            return self.session_context.call_host_tool(name)
        except SnakepitError as error:
            return str(error)

    @tool
    def read(self, name: str) -> Any:
        """Read the results of a tool, and block the event loop until they end."""
        try:
            return list(self.session_context.stream_tool(name))
        except SnakepitError as error:
            return str(error)

    @tool
    async def ask_politely(self, name: str) -> Any:
        self.session_context.call_host_tool("quick")
        return await self.session_context.call_host_tool_async(name)

    @tool
    async def pids(self) -> Any:
        yield os.getpid()

    @tool
    async def hang(self) -> None:
        await asyncio.Event().wait()

    @tool(after_cancel="replace")
    def block_and_replace(self) -> None:
        while True:
            time.sleep(0.01)


class Serial(BaseAdapter):
    """Only `proceed` overlaps, so the other tools run one after another."""

    may_proceed = asyncio.Event()

    @tool(concurrency=8)
    async def proceed(self) -> None:
        """Let the running call of `large` or `items` go on, after the next call has arrived."""
        self.may_proceed.set()

    @tool
    async def large(self, count: int) -> str:
        await self.may_proceed.wait()
        return "x" * count

    @tool
    async def items(self, count: int) -> Any:
        await self.may_proceed.wait()
        for _ in range(count):
            yield "x" * 10_000

    @tool
    async def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
