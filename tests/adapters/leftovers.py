"""Tools that change their process or event loop, and tools that detect such changes."""

import asyncio
import decimal
import faulthandler
import gc
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from signal import alarm, set_wakeup_fd, setitimer
from typing import Any

from snakepit_bridge import BaseAdapter, tool, worker_task

#: This division creates the context of `decimal` before the first call.
THIRD = Decimal(1) / 3

_waking = socket.socketpair()
_waking[0].setblocking(False)
_references: list[Any] = []
_ticks: list[int] = []


def _raise(*_: object) -> None:
    raise RuntimeError("a handler of an earlier call")


def _wakeup() -> int:
    """Returns the descriptor that `signal.set_wakeup_fd` has set."""
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    return descriptor


def _dispositions() -> list[str]:
    """Returns the signal masks of the kernel, which may differ from the state of the `signal` module."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return [line for line in lines if line.startswith(("SigBlk", "SigIgn", "SigCgt"))]


def _wrap_stdout() -> None:
    # The wrapper closes the buffer when it is garbage-collected.
    io.TextIOWrapper(sys.stdout.buffer, encoding="latin-1").write("wrapped\n")


def _set(name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(sys, name, value)


def _stdout() -> list[Any]:
    print("looking")
    return [sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering, sys.stdout is sys.__stdout__]


def _handlers() -> list[str]:
    return [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())]


#: By leftover: a function that causes it, and one that detects it.
PLAIN: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "children ignored": (
        lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        lambda: subprocess.run(["false"], check=False).returncode,
    ),
    "handler": (lambda: signal.signal(signal.SIGUSR1, _raise), _handlers),
    "default of a handled signal": (lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL), _dispositions),
    "handler of a crash": (lambda: signal.signal(signal.SIGSEGV, _raise), _dispositions),
    "termination put back": (
        lambda: signal.signal(signal.SIGTERM, signal.signal(signal.SIGTERM, _raise)),
        _dispositions,
    ),
    "wakeup": (lambda: signal.set_wakeup_fd(_waking[0].fileno(), warn_on_full_buffer=False), _wakeup),
    "wakeup, by a function taken at import": (lambda: set_wakeup_fd(_waking[0].fileno()), _wakeup),
    "alarm": (lambda: alarm(600), lambda: signal.getitimer(signal.ITIMER_REAL)),
    "timer": (lambda: setitimer(signal.ITIMER_PROF, 600), lambda: signal.getitimer(signal.ITIMER_PROF)),
    "arguments": (lambda: sys.argv.append("secret"), lambda: list(sys.argv)),
    "other arguments": (_set("argv", ["secret"]), lambda: list(sys.argv)),
    "no arguments": (lambda: sys.argv.clear(), lambda: list(sys.argv)),
    "stdout": (_set("stdout", io.StringIO()), _stdout),
    "no stdout": (lambda: delattr(sys, "stdout"), _stdout),
    "closed stdout": (lambda: sys.stdout.close(), _stdout),
    "wrapped stdout": (_wrap_stdout, _stdout),
    "detached stdout": (lambda: _references.append(sys.stdout.detach()), _stdout),
    "other encoding": (
        lambda: sys.stdout.reconfigure(encoding="latin-1", errors="ignore", write_through=False),
        _stdout,
    ),
    "stdin": (_set("stdin", None), lambda: sys.stdin is None),
    "precision": (lambda: setattr(decimal.getcontext(), "prec", 3), lambda: str(Decimal(1) / 3)),
    "trace": (lambda: sys.settrace(lambda *_: None), lambda: str(sys.gettrace())),
    "profile": (lambda: sys.setprofile(lambda *_: None), lambda: str(sys.getprofile())),
    "collector": (gc.disable, gc.isenabled),
    "deeper recursion": (lambda: sys.setrecursionlimit(5000), sys.getrecursionlimit),
    "shallower recursion": (lambda: sys.setrecursionlimit(300), sys.getrecursionlimit),
}


async def _sleep() -> str:
    await asyncio.sleep(0.3)
    return "slept"


async def _count_ticks() -> int:
    before = len(_ticks)
    await asyncio.sleep(0.1)
    return len(_ticks) - before


def _tick_by_timer(loop: asyncio.AbstractEventLoop) -> None:
    _ticks.append(1)
    loop.call_later(0.01, _tick_by_timer, loop)


def _tick_by_callback(loop: asyncio.AbstractEventLoop) -> None:
    _ticks.append(1)
    loop.call_soon(_tick_by_callback, loop)


def _read_exit(loop: asyncio.AbstractEventLoop) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x")
    loop.add_reader(reading, sys.exit, 5)


def _exit_from_thread(loop: asyncio.AbstractEventLoop) -> None:
    def run() -> None:
        time.sleep(0.1)
        loop.call_soon_threadsafe(sys.exit, 7)

    loop.run_in_executor(None, run)


async def _handlers_async() -> list[str]:
    return [*_handlers(), str(_wakeup())]


async def _slow_callback_seconds() -> float:
    return asyncio.get_running_loop().slow_callback_duration


#: By leftover of a coroutine: a function that causes it, and a coroutine that detects it.
ASYNC: dict[str, tuple[Callable[[asyncio.AbstractEventLoop], Any], Callable[[], Any]]] = {
    "exit by timer": (lambda loop: loop.call_later(0.1, sys.exit, 9), _sleep),
    "exit by reader": (_read_exit, _sleep),
    "exit by writer": (lambda loop: loop.add_writer(_waking[1], sys.exit, 5), _sleep),
    "exit by thread": (_exit_from_thread, _sleep),
    "exit by callback": (lambda loop: loop.call_soon(sys.exit, 5), _sleep),
    "signal handler": (lambda loop: loop.add_signal_handler(signal.SIGUSR1, sys.exit, 5), _handlers_async),
    "timer": (_tick_by_timer, _count_ticks),
    "callback": (_tick_by_callback, _count_ticks),
    "slow": (lambda loop: setattr(loop, "slow_callback_duration", 0), _slow_callback_seconds),
}


async def _talk() -> None:
    while True:
        print("the worker's own")
        await asyncio.sleep(0.01)


class Leftovers(BaseAdapter):
    @tool
    def names(self) -> list[str]:
        return list(PLAIN)

    @tool
    def names_async(self) -> list[str]:
        return list(ASYNC)

    @tool
    def leave(self, name: str) -> None:
        PLAIN[name][0]()

    @tool
    async def leave_async(self, name: str) -> None:
        ASYNC[name][0](asyncio.get_running_loop())

    @tool
    def look(self, name: str) -> list[Any]:
        return [os.getpid(), PLAIN[name][1]()]

    @tool
    async def look_async(self, name: str) -> list[Any]:
        return [os.getpid(), await ASYNC[name][1]()]

    @tool
    def whisper(self, text: str) -> None:
        """Prints a text without a newline."""
        print(text, end="")

    @tool
    def child_writes_stacks(self) -> bool:
        """Returns whether `faulthandler` is enabled in a fork."""
        child = os.fork()
        if child == 0:
            os._exit(faulthandler.is_enabled())
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1

    @tool
    async def start_talking(self) -> None:
        """Starts a worker task that prints until the worker ends."""
        _references.append(worker_task(_talk()))

    @tool
    async def die(self, text: str) -> None:
        """Prints a text, lets the worker task print, and exits."""
        print(text)
        await asyncio.sleep(0.1)
        os._exit(3)

    @tool
    async def leave_task(self, seconds: float) -> str:
        """Leaves a task that ends slowly when it is cancelled."""
        _references.append(asyncio.ensure_future(self._linger(seconds)))
        await asyncio.sleep(0)
        return "done"

    @tool
    async def leave_blocking_task(self) -> str:
        """Leaves a task that blocks the event loop when it is cancelled."""
        _references.append(asyncio.ensure_future(self._block()))
        await asyncio.sleep(0)
        return "done"

    @staticmethod
    async def _block() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            time.sleep(600)

    @tool
    async def leave_task_in_stream(self, seconds: float) -> AsyncIterator[str]:
        """Streams one item, and leaves a task like `leave_task`."""
        yield await self.leave_task(seconds)

    @staticmethod
    async def _linger(seconds: float) -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(seconds)
