"""Tools that report progress, print, log, start programs and threads, and die, for tests/tests/reports.rs."""

import asyncio
import concurrent.futures
import contextlib
import ctypes
import io
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snakepit_bridge import BaseAdapter, ToolError, current_context, tool

_pool = concurrent.futures.ThreadPoolExecutor(1)


class NoItemError(ToolError):
    pass


class Reporting(BaseAdapter):
    @tool
    def train(self, steps: int, pause: float = 0.0) -> int:
        for step in range(steps):
            current_context().report_progress(step + 1, steps, f"step {step + 1}")
            time.sleep(pause)
        return steps

    @tool
    def stall(self) -> bool:
        """Report twice at once, and wait until the caller has seen the second report."""
        context = current_context()
        context.report_progress(1, 2)
        context.report_progress(2, 2, "waiting")
        while not context.cancelled:
            time.sleep(0.01)
        return True

    @tool
    def count(self, n: int) -> Iterator[int]:
        for number in range(n):
            current_context().report_progress(number + 1, n)
            print("item", number)
            yield number

    @tool
    def speak(self) -> str:
        """Write in every way."""
        print("printed")
        print("a part, ", end="")
        print("in stderr", file=sys.stderr)
        print("and the rest")
        sys.stdout.buffer.write(b"bytes\n")
        warnings.warn("a warning", stacklevel=1)
        logging.getLogger("shop.till").error("an error")
        logger = logging.getLogger("shop")
        logger.setLevel(logging.DEBUG)
        logger.debug("a detail")
        sys.stderr.write("\r 10%\r 50%\r100%\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        os.system("echo from a shell >&2")
        thread = threading.Thread(target=print, args=("from a thread",))
        thread.start()
        thread.join()
        _pool.submit(print, "from a pool").result()
        os.write(1, b"from native code\n")
        ctypes.CDLL(None).printf(b"from C\n")
        print("\x1eno frame")
        with contextlib.redirect_stdout(io.StringIO()):
            print("redirected")
        print("no newline", end="")
        return current_context().request_id

    @tool
    async def speak_async(self) -> str:
        async def speak(text: str) -> None:
            await asyncio.sleep(0)
            print(text)

        await asyncio.gather(speak("from a task"), asyncio.to_thread(print, "from to_thread"))
        return current_context().request_id

    @tool
    def whisper(self) -> None:
        print("of another call")

    @tool
    def redirected(self, path: str) -> str:
        """Print into a file that replaces standard output."""
        saved = os.dup(1)
        with Path(path).open("wb") as file:
            os.dup2(file.fileno(), 1)
        try:
            print("into the file")
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        print("to the host")
        return Path(path).read_text()

    @tool
    def variables(self) -> list[str]:
        """Return the variables that concern the output, in this process and in a program that it starts."""
        names = [name for name in os.environ if "OUTPUT" in name]
        program = "import os; print(*(name for name in os.environ if 'OUTPUT' in name))"
        return names + subprocess.check_output([sys.executable, "-c", program], text=True).split()

    @tool
    def outer(self, depth: int) -> int:
        """Call itself in other workers."""
        context = current_context()
        print("begin", depth)
        context.report_progress(depth)
        nested = 0 if depth == 0 else 1 + int(context.call_tool("outer", depth=depth - 1))
        print("end", depth)
        return nested

    @tool
    def reads(self) -> list[int]:
        return list(current_context().stream_tool("count", n=2))

    @tool
    def calls_host_tool(self, name: str) -> None:
        current_context().call_host_tool(name)

    @tool
    def chunks(self, count: int, size: int) -> Iterator[str]:
        for _ in range(count):
            yield "x" * size

    @tool
    def buffers(self) -> Iterator[dict[str, bytes]]:
        yield {"raw": b"\0\xff"}

    @tool
    def fail(self) -> None:
        self._fail()

    @tool
    def fail_later(self) -> Iterator[int]:
        yield 1
        self._fail()

    def _fail(self) -> None:
        try:
            raise KeyError(7)
        except KeyError as cause:
            error = NoItemError("no item 7", code="not_found", data={"id": 7})
            error.add_note("a note")
            raise error from cause

    @tool
    def flood(self, lines: int) -> int:
        for number in range(lines):
            print("line", number)
        current_context().report_progress(lines, lines)
        return lines

    @tool
    def dump(self) -> None:
        """Write binary data and a line without an end."""
        sys.stdout.buffer.write(bytes(range(256)) * 100 + b"\n")
        for _ in range(3000):
            sys.stdout.write("x" * 1000)
        print("after")

    @tool
    def families(self, lines: int) -> None:
        """Write from forks, programs and threads at the same time."""
        program = f"for number in range({lines}): print('program', number, 'p' * 100, flush=True)"
        programs = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
        fork = multiprocessing.get_context("fork").Process(target=_print_lines, args=("fork", lines))
        # It flushes the standard streams.
        fork.start()
        print("unfinished,", end=" ")
        thread = threading.Thread(target=_print_lines, args=("thread", lines))
        thread.start()
        thread.join()
        fork.join()
        for started in programs:
            started.wait()
        print("finished")

    @tool
    def programs_in_order(self) -> None:
        """Write in turns with programs."""
        for number in range(20):
            print("tool", number)
            subprocess.run(["echo", "program", str(number)], check=True)
            os.system(f"printf 'part of %s\\n' {number} >&2")
            print("error", number, file=sys.stderr)

    @tool
    def exit_after_program(self) -> None:
        subprocess.run(["echo", "last words of a program"], check=True)
        os._exit(3)

    @tool
    def nested_programs(self, lines: int) -> None:
        """Run programs in forks."""
        context = multiprocessing.get_context("fork")
        forks = [context.Process(target=_run_program, args=(number, lines)) for number in range(3)]
        for fork in forks:
            fork.start()
        for fork in forks:
            fork.join()

    @tool
    def size(self, data: str) -> int:
        print("size", len(data))
        return len(data)

    @tool
    def die(self, how: str) -> None:
        print("last words")
        ctypes.CDLL(None).printf(b"last words of C\n")
        logging.getLogger("dying").warning("last record")
        current_context().report_progress(0.5, 1)
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "fault": signal.SIGSEGV}[how])

    @tool
    def contexts(self) -> list[str]:
        """Return the session of the context everywhere that a tool can ask for it."""

        def session() -> str:
            return current_context().session_id

        found = [session(), self.session_context.session_id]

        class Worker(threading.Thread):
            def run(self) -> None:
                found.append(session())

        for thread in (threading.Thread(target=lambda: found.append(session())), Worker()):
            thread.start()
            thread.join()
        found.append(_pool.submit(session).result())
        found.append(_pool.submit(lambda: _pool2(session)).result())
        return found

    @tool
    async def contexts_async(self) -> list[str]:
        async def session() -> str:
            await asyncio.sleep(0)
            return current_context().session_id

        def plain() -> str:
            return current_context().session_id

        loop = asyncio.get_running_loop()
        return [
            await session(),
            await asyncio.create_task(session()),
            await asyncio.to_thread(plain),
            await loop.run_in_executor(None, plain),
            await loop.run_in_executor(_pool, plain),
        ]


class Concurrent(Reporting):
    """The same tools in a worker that runs calls concurrently."""

    concurrency = 8

    @tool
    async def meet(self, name: str, peers: int) -> str:
        """Print after all peers have begun."""
        self.process.begun = getattr(self.process, "begun", 0) + 1
        while self.process.begun < peers:
            await asyncio.sleep(0.001)
        print("name", name)
        current_context().report_progress(1, 1, name)
        return current_context().session_id

    @tool
    async def relay(self, name: str) -> None:
        """Call a tool of this worker after all three callers have begun."""
        await current_context().call_tool_async("meet", name=name, peers=3)

    @tool
    async def run_program(self, name: str, peers: int) -> None:
        """Run an unbuffered program at the same time as other calls."""
        self.process.begun = getattr(self.process, "begun", 0) + 1
        while self.process.begun < peers:
            await asyncio.sleep(0.001)
        program = f"for number in range(50): print('of', {name!r}, number, 'end')"
        started = await asyncio.create_subprocess_exec(sys.executable, "-u", "-c", program)
        await started.wait()

    @tool
    async def hold(self) -> None:
        """Run until another call releases it."""
        event = self.process.held = asyncio.Event()
        await event.wait()

    @tool
    async def leave_unfinished(self, calls: int) -> int:
        """Print no end of the line. Return the number of calls that the worker keeps for their output."""
        print("unfinished", calls, end="")
        sys.stdout.flush()
        print("rest", calls, end="")
        buffer: Any = sys.stdout.buffer
        return len(buffer.output._unfinished)

    @tool
    async def release(self) -> None:
        self.process.held.set()


def _print_lines(kind: str, lines: int) -> None:
    for number in range(lines):
        print(kind, number, kind * 20)


def _run_program(number: int, lines: int) -> None:
    program = f"for line in range({lines}): print('fork {number}', line, 'end')"
    subprocess.run([sys.executable, "-u", "-c", program], check=True)


def _pool2(session):  # noqa: ANN001, ANN202
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(session).result()
