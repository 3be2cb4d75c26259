"""Reads a variable once for each line on stdin, while a thread and a coroutine watch it.

The argument is the host's address. Prints values and errors, and continues after the host has stopped.
"""

import asyncio
import sys
import threading

from snakepit_bridge import SnakepitError
from snakepit_bridge.client import Client


def show(outcome: object) -> None:
    """Prints a value or an exception."""
    kind = f"{type(outcome).__name__}: " if isinstance(outcome, BaseException) else ""
    print(f"{kind}{outcome}", flush=True)


client = Client(sys.argv[1])
session = client.session("s")
session["n"] = 1
watches = [session.watch(), session.watch()]


async def watch() -> None:
    """Waits for an update in a thread and in a coroutine."""
    waits = [asyncio.to_thread(next, watches[0]), anext(watches[1])]
    for outcome in await asyncio.gather(*waits, return_exceptions=True):
        show(outcome)


threading.Thread(target=lambda: asyncio.run(watch())).start()
for _ in sys.stdin:
    try:
        show(session.options(timeout=2)["n"])
    except SnakepitError as error:
        show(error)
