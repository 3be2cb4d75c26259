"""Coroutines that clean up after their cancellation, and record whether they finish."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from snakepit_bridge import BaseAdapter, CallCancelled, tool

#: The seconds for which a cleanup blocks the event loop. Longer than the pause before an interruption.
_BLOCKED = 0.25


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer HTTP requests: those of `/slow` never end."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            if b"/slow" in head:
                # The client waits for the body.
                writer.write(b"o")
                await reader.read()
                break
            writer.write(b"ok")
    writer.close()


class Cancelled(BaseAdapter):
    concurrency = 20

    @classmethod
    @contextlib.asynccontextmanager
    async def lifespan(cls) -> AsyncIterator[dict[str, Any]]:
        server = await asyncio.start_server(_serve, "127.0.0.1", 0)
        async with server, contextlib.AsyncExitStack() as stack:
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            state: dict[str, Any] = {"events": [], "address": address}
            with contextlib.suppress(ImportError):
                import aiohttp

                # The second request waits for the connection of the first.
                connector = aiohttp.TCPConnector(limit=1)
                state["aiohttp"] = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            with contextlib.suppress(ImportError):
                import httpx

                limits = httpx.Limits(max_connections=1)
                state["httpx"] = await stack.enter_async_context(httpx.AsyncClient(limits=limits, timeout=30))
            yield state

    async def _clean_up(self, name: str) -> None:
        """Wait, block the event loop, and wait again."""
        try:
            await asyncio.sleep(0.05)
            await asyncio.to_thread(time.sleep, 0.05)
            time.sleep(_BLOCKED)
            await asyncio.sleep(0.05)
        except BaseException as error:
            self.process.events.append(f"{name}: {type(error).__name__}")
            raise
        self.process.events.append(f"{name}: cleaned up")

    @tool
    async def events(self) -> list[str]:
        return list(self.process.events)

    @tool
    async def clear(self) -> int:
        """Forget the events, and return the pid."""
        self.process.events.clear()
        return os.getpid()

    @tool
    async def hang(self, way: str) -> None:
        """Wait until the call is cancelled, and clean up in this way."""
        body: Callable[[], Coroutine[Any, Any, None]] = getattr(self, f"_{way}")
        self.process.events.append("began")
        await body()

    async def _in_finally(self) -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await self._clean_up("finally")

    async def _in_except(self) -> None:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            await self._clean_up("except")
            raise

    async def _after_except(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(600)
        await self._clean_up("after except")

    async def _in_context(self) -> None:
        @contextlib.asynccontextmanager
        async def resource() -> AsyncIterator[None]:
            try:
                yield
            finally:
                await self._clean_up("context")

        async with resource(), resource():
            await asyncio.sleep(600)

    async def _shielded(self) -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.shield(self._clean_up("shield"))

    async def _in_group(self) -> None:
        async def child() -> None:
            try:
                await asyncio.sleep(600)
            finally:
                await self._clean_up("child")

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                group.create_task(child())
        finally:
            await self._clean_up("parent")

    async def _in_timeout(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                try:
                    async with asyncio.timeout(20):
                        await asyncio.sleep(600)
                finally:
                    await self._clean_up("timeout")

    async def _blocking(self) -> None:
        """Block the event loop, which only an exception can end."""
        try:
            while True:
                time.sleep(0.01)
        except CallCancelled:
            await self._clean_up("blocking")
            raise

    async def _blocking_child(self) -> None:
        async def child() -> None:
            while True:
                time.sleep(0.01)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
        finally:
            await self._clean_up("parent")

    async def _in_anyio(self) -> None:
        import anyio

        async def child() -> None:
            try:
                await anyio.sleep(600)
            finally:
                with anyio.CancelScope(shield=True):
                    await self._clean_up("child")

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(child)
                group.start_soon(child)
        finally:
            with anyio.CancelScope(shield=True):
                await self._clean_up("parent")

    async def _in_aiohttp(self) -> None:
        async with self.process.aiohttp.get(f"{self.process.address}/slow") as response:
            try:
                await response.read()
            finally:
                await self._clean_up("aiohttp")

    async def _in_httpx(self) -> None:
        async with self.process.httpx.stream("GET", f"{self.process.address}/slow") as response:
            try:
                await response.aread()
            finally:
                await self._clean_up("httpx")

    @tool
    async def fetch(self, client: str) -> str:
        """Use the only connection of a client."""
        if client == "aiohttp":
            async with self.process.aiohttp.get(self.process.address) as response:
                return str(await response.text())
        return str((await self.process.httpx.get(self.process.address)).text)

    @tool
    async def leave(self) -> None:
        """Leave a cancelled task behind, which has not cleaned up yet."""
        task = asyncio.ensure_future(self._in_finally())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0)
        # Keeps the task alive.
        self.process.task = task

    @tool
    async def never_end(self) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(600)

    @tool
    async def spoil_tasks(self, failures: int) -> None:
        """Let the creation of this many tasks for the tool `echo` fail."""
        task_class = asyncio.Task
        left = failures

        def create(*args: Any, name: str | None = None, **options: Any) -> Any:
            nonlocal left
            if name == "echo" and left > 0:
                left -= 1
                raise MemoryError("no task")
            return task_class(*args, name=name, **options)

        asyncio.Task = create  # type: ignore[assignment, misc]

    @tool
    async def echo(self, value: int) -> int:
        # A timer, a task and a callback for each call.
        loop = asyncio.get_running_loop()
        loop.call_later(600, bytes(1000).hex)
        await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0.0001))
        return value

    @tool
    async def memory(self) -> dict[str, int]:
        """Return the number of objects, before a collection, and the resident memory in bytes."""
        objects = len(gc.get_objects())
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return {"objects": objects, "bytes": pages * os.sysconf("SC_PAGE_SIZE")}

    @tool
    async def disable_gc(self) -> None:
        gc.collect()
        gc.disable()

    @tool
    async def wait(self) -> None:
        self.process.events.append("began")
        await asyncio.sleep(600)

    @tool
    async def timers(self, count: int) -> int:
        """Wait often, and return the number of timers that the worker remembers."""
        for _ in range(count):
            await asyncio.sleep(0.0001)
        from snakepit_bridge._owner import OWNER

        owner: Any = OWNER.get()
        return len(owner.timers)
