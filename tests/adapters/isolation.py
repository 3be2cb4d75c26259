"""Tools that change the state of their process, and tools that detect such changes."""

import asyncio
import contextvars
import ctypes
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

from snakepit_bridge import BaseAdapter, tool, worker_task

USER: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="unset")


def _idle() -> None:
    time.sleep(600)


def _double(x: int) -> int:
    return 2 * x


class Isolation(BaseAdapter):
    ticks: ClassVar[int] = 0

    @tool
    def ping(self) -> int:
        return os.getpid()

    @tool
    def become(self, user: str) -> str:
        USER.set(user)
        return USER.get()

    @tool
    def who(self) -> str:
        return USER.get()

    @tool
    async def become_async(self, user: str) -> str:
        USER.set(user)
        return USER.get()

    @tool
    async def who_async(self) -> str:
        return USER.get()

    @tool
    async def leave(self) -> None:
        sys.exit(3)

    @tool
    async def run_program(self) -> int:
        return await (await asyncio.create_subprocess_exec("true")).wait()

    @tool
    def fork_and_terminate(self) -> Any:
        child = multiprocessing.get_context("fork").Process(target=_idle)
        child.start()
        child.terminate()
        child.join(5)
        ended = child.exitcode
        child.kill()
        return ended

    @tool
    def pool_of_two(self) -> Any:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(_double, [1, 2, 3])

    @tool
    def signals_of_children(self) -> Any:
        """Returns the signal handlers and masks of a fork and of a new program."""
        code = (
            "import signal, os;"
            "print([str(signal.getsignal(n)).split(' at ')[0] for n in sorted(signal.valid_signals())],"
            "sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),"
            # Without the two signals that the C library uses for threads.
            "[(l[:6], int(l[8:], 16) & ~(3 << 31)) for l in open('/proc/self/status') "
            "if l[:6] in ('SigBlk', 'SigIgn', 'SigCgt')])"
        )
        read, write = os.pipe()
        if os.fork() == 0:
            os.dup2(write, 1)
            exec(code)
            sys.stdout.flush()
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            forked = pipe.read()
        os.wait()
        program = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout
        return [forked, program]

    @tool
    def take_signals(self) -> None:
        for number in (signal.SIGURG, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG, signal.SIGTERM])
        signal.setitimer(signal.ITIMER_REAL, 0.2)

    @tool
    def borrow_sigterm(self) -> None:
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGTERM, before)

    @tool
    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    @tool
    def wait_in_library(self) -> None:
        queue.Queue[int]().get()

    @tool(after_cancel="keep")
    def wait_in_library_and_stay(self) -> None:
        queue.Queue[int]().get()

    @tool(after_cancel="replace")
    def sleep_and_go(self) -> None:
        time.sleep(600)

    @tool
    def start_program(self) -> None:
        subprocess.Popen(["sleep", "600"])
        time.sleep(600)

    @tool
    def import_lazily(self) -> int:
        import lazy_module

        return lazy_module.VALUE

    @tool
    def clean_up(self, path: str) -> None:
        try:
            time.sleep(600)
        finally:
            time.sleep(1.5)
            Path(path).write_text("clean")

    @tool
    async def leave_task(self) -> None:
        self.task = asyncio.create_task(asyncio.sleep(600), name="forgotten")
        await asyncio.sleep(0)

    @tool
    async def start_ticker(self) -> None:
        worker_task(self.tick())

    @classmethod
    async def tick(cls) -> None:
        while True:
            cls.ticks += 1
            await asyncio.sleep(0.005)

    @tool
    def ticked(self) -> int:
        return type(self).ticks

    @tool
    def crash_here(self) -> None:
        ctypes.string_at(0)

    @tool
    def argv(self) -> list[str]:
        return sys.argv

    @tool
    def floats(self) -> Any:
        return {"x": [1.0, float("nan"), float("-inf")], "text": "NaN"}

    @tool
    def types(self, f: float = 0.0, i: int = 0, anything: Any = None) -> list[str]:
        return [type(f).__name__, type(i).__name__, type(anything).__name__]

    @tool
    def threads(self) -> int:
        return threading.active_count()


class Ticking(Isolation):
    @classmethod
    async def process_init(cls) -> None:
        cls.task = asyncio.create_task(cls.tick())


class NeedsArguments(BaseAdapter):
    def __init__(self, path: str) -> None:
        self.path = path

    @tool
    def ping(self) -> str:
        return self.path
