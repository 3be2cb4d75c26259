"""Tools that break their process for later calls."""

import asyncio
import atexit
import builtins
import faulthandler
import gc
import locale
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from snakepit_bridge import BaseAdapter, tool
from snakepit_bridge.errors import SnakepitError


def _limit(which: int, soft: int) -> None:
    resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))


def _leak_descriptors() -> None:
    _limit(resource.RLIMIT_NOFILE, 64)
    while True:
        try:
            os.dup(0)
        except OSError:
            return


def _remove_directory() -> None:
    directory = tempfile.mkdtemp()
    os.chdir(directory)
    Path(directory).rmdir()


def _set_invalid_loop_policy() -> None:
    class Policy:
        pass

    asyncio.events._event_loop_policy = Policy()  # type: ignore[attr-defined]


def _trace() -> None:
    def trace(frame: object, event: str, argument: object) -> None:
        raise RuntimeError("traced")

    sys.settrace(trace)


def _close_selector() -> None:
    """Closes the epoll descriptors of all event loops in the process."""
    loop = asyncio.new_event_loop()
    loop.close()
    for number in range(3, 64):
        try:
            if "eventpoll" in str(Path(f"/proc/self/fd/{number}").readlink()):
                os.close(number)
        except OSError:
            continue


def _fork() -> None:
    os.fork()


def _exit_later() -> None:
    threading.Thread(target=lambda: (time.sleep(0.02), os._exit(3)), daemon=True).start()


SABOTAGE: dict[str, Callable[[], object]] = {
    "leak descriptors": _leak_descriptors,
    "close the standard streams": lambda: os.closerange(0, 3),
    "close all other descriptors": lambda: os.closerange(3, 100),
    "close selectors": _close_selector,
    "clear builtins": lambda: builtins.__dict__.clear(),
    "remove print": lambda: delattr(builtins, "print"),
    "stdout is garbage": lambda: setattr(sys, "stdout", 5),
    "replace modules": lambda: setattr(sys, "modules", {}),
    "clear modules": lambda: sys.modules.clear(),
    "remove importers": lambda: sys.meta_path.clear(),
    "recursion limit": lambda: sys.setrecursionlimit(20),
    "remove the directory": _remove_directory,
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8"),
    "no descriptors": lambda: _limit(resource.RLIMIT_NOFILE, 3),
    "no memory": lambda: _limit(resource.RLIMIT_AS, 1 << 20),
    "invalid loop policy": _set_invalid_loop_policy,
    "threading": lambda: setattr(threading, "Thread", None),
    "gc": gc.disable,
    "trace": _trace,
    "faulthandler": faulthandler.disable,
    "timer": lambda: signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001),
    "atexit": lambda: atexit.register(None),  # type: ignore[arg-type]
    "exit in a thread": _exit_later,
    "fork": _fork,
    "environment": lambda: os.environ.clear(),
    "path": lambda: sys.path.clear(),
}


class SabotageAdapter(BaseAdapter):
    @tool
    def names(self) -> list[str]:
        """Returns the names of all ways to break the process."""
        return list(SABOTAGE)

    @tool
    def sabotage(self, how: str) -> str:
        """Breaks the process, and tries to return normally."""
        result = "sabotaged"
        SABOTAGE[how]()
        return result

    @tool
    def work(self, n: int) -> dict[str, int]:
        """Imports, prints, recurses and opens a file, as normal tools do."""
        import json

        def depth(n: int) -> int:
            return 0 if n == 0 else 1 + depth(n - 1)

        print("working", flush=True)
        with Path("/dev/null").open(encoding="utf-8"):
            return {"twice": len(json.loads(json.dumps([0] * (2 * n)))), "depth": depth(30)}

    @tool
    async def work_async(self, n: int) -> dict[str, int]:
        """Does the same as `work` on the event loop."""
        await asyncio.sleep(0)
        return self.work(n)

    @tool
    def fail(self) -> None:
        """Raises an exception."""
        raise SnakepitError("on purpose")
