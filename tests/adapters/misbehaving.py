"""Tools that crash, hang, flood the log, fork or leave processes behind."""

import asyncio
import collections
import ctypes
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from snakepit_bridge import BaseAdapter, tool
from snakepit_bridge.errors import HostUnavailableError


class MisbehavingAdapter(BaseAdapter):
    @tool
    def ping(self) -> str:
        """Returns `pong`."""
        return "pong"

    @tool
    def fork(self) -> int:
        """Forks a process that calls the host like the worker. Returns its exit status."""
        child = os.fork()
        if child == 0:
            try:
                self.session_context.call_host_tool("anything")
            except HostUnavailableError:
                sys.exit()
            os._exit(9)
        return os.waitpid(child, 0)[1]

    @tool
    def fork_and_end(self, end: str) -> int:
        """Forks a process whose tool ends in this way. Returns its exit status."""
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if end == "value":
            return 7
        if end == "exception":
            raise ValueError("raised in a fork")
        sys.exit("a message" if end == "message" else int(end))

    @tool
    def crash(self) -> None:
        """Exits without cleanup."""
        print("about to crash", flush=True)
        os._exit(7)

    @tool
    def say(self, text: str) -> None:
        """Prints a text to stdout and stderr."""
        print(text)
        print(text, file=sys.stderr)

    @tool
    def say_everywhere_and_die(self) -> None:
        """Prints through Python, a thread, a subprocess and C code, and kills the worker."""
        print("from the call")
        thread = threading.Thread(target=print, args=("from a thread",))
        thread.start()
        thread.join()
        subprocess.run(["echo", "from a subprocess"], check=True)
        # Like C code, past `sys.stdout`.
        os.write(1, b"from C code\n")
        os.kill(os.getpid(), signal.SIGKILL)

    @tool
    def say_and_die(self, text: str, signal: int) -> None:
        """Prints a text, and kills the process with a signal."""
        print(text)
        os.kill(os.getpid(), signal)

    @tool
    def die_when_cancelled(self) -> None:
        """Crashes when it is cancelled."""
        try:
            print("going to sleep")
            time.sleep(600)
        except BaseException:
            print("cannot go on")
            ctypes.string_at(0)

    @tool
    def print_without_newline(self, n: int) -> int:
        """Prints a long line without a newline."""
        for _ in range(n // 65536):
            sys.stdout.write("x" * 65536)
        sys.stdout.flush()
        return n

    @tool
    def daemonize(self, count: int) -> None:
        """Starts daemonized processes that end soon."""
        for _ in range(count):
            subprocess.run(["sh", "-c", "setsid sleep 0.1 >/dev/null 2>&1 &"], check=True)

    @tool
    def segfault(self) -> None:
        """Reads from address zero."""
        ctypes.string_at(0)

    @tool
    def hang(self) -> None:
        """Sleeps in a loop that ignores every exception."""
        while True:
            try:
                time.sleep(0.01)
            except BaseException as error:
                print(f"ignored {error!r}", file=sys.stderr)

    @tool
    def busy(self) -> None:
        """Runs Python code in an endless loop, which an exception can interrupt."""
        while True:
            pass

    @tool
    def sleep_and_clean_up(self, path: str) -> None:
        """Writes a file, sleeps, and replaces the file during cleanup."""
        try:
            Path(path).write_text("running")
            time.sleep(600)
        finally:
            Path(path).write_text("clean")

    @tool
    def sleep_for(self, seconds: float, path: str) -> float:
        """Writes a file, then sleeps. Returns the number of seconds that it slept."""
        Path(path).write_text("running")
        started = time.monotonic()
        time.sleep(seconds)
        return time.monotonic() - started

    @tool
    def sleep(self) -> None:
        """Blocks in a system call."""
        time.sleep(600)

    @tool
    async def sleep_async(self) -> None:
        """Waits in a coroutine."""
        await asyncio.sleep(600)

    @tool
    def hold_gil(self) -> None:
        """Hangs in C code that neither releases the GIL nor checks for signals."""
        collections.deque(itertools.repeat(None), maxlen=0)

    @tool
    def flood_stdout(self, n: int) -> int:
        """Prints many lines."""
        for number in range(n):
            print(f"line {number} of a flood that must not block calls")
        return n

    @tool
    def fail_midway(self, after: int) -> Iterator[int]:
        """Streams some items, then fails."""
        yield from range(after)
        raise RuntimeError("failed midway")

    @tool
    def exit_politely(self) -> None:
        """Raises SystemExit, which fails only the call."""
        sys.exit(5)

    @tool
    def echo_bytes(self, data: bytes) -> bytes:
        """Returns its argument."""
        return data

    @tool
    def leave_behind(self, seconds: float) -> int:
        """Daemonizes a process that holds all descriptors of the worker. Returns its pid."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(writing, str(os.getpid()).encode())
                time.sleep(seconds)
            os._exit(0)
        os.waitpid(child, 0)
        return int(os.read(reading, 20))

    @tool
    def daemonize_clean(self) -> int:
        """Daemonizes a program without the environment and descriptors of the worker. Returns its pid."""
        script = "echo $$; exec sleep 600 >/dev/null 2>&1 </dev/null"
        command = ["sh", "-c", f"(setsid sh -c '{script}' &)"]
        return int(subprocess.run(command, env={}, check=True, stdout=subprocess.PIPE).stdout)

    @tool
    def daemonize_for_good(self) -> int:
        """Starts a program that removes the mark of the worker. Returns its pid."""
        command = ["prlimit", "--locks=unlimited", "sleep", "600"]
        daemon = subprocess.Popen(command, start_new_session=True).pid
        while Path(f"/proc/{daemon}/comm").read_text() != "sleep\n":
            time.sleep(0.001)
        return daemon

    @tool
    def spawn_grandchild(self) -> int:
        """Starts a process that runs for ten minutes. Returns its pid."""
        return subprocess.Popen(["sleep", "600"]).pid

    @tool
    def hang_up(self) -> int:
        """Returns the pid, and then closes the connection to the host while the process continues."""

        def cut() -> None:
            time.sleep(0.1)
            for fd in range(3, 256):
                try:
                    connection = socket.socket(fileno=os.dup(fd))
                    if str(connection.getsockname()).endswith(".sock"):
                        connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

        threading.Thread(target=cut, daemon=True).start()
        return os.getpid()
