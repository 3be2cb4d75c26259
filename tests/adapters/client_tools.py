"""Tools for the tests of the Python client."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypedDict

from snakepit_bridge import BaseAdapter, current_context, tool


class Item(TypedDict, total=False):
    """A line of an order."""

    name: str
    price: float


class ClientTools(BaseAdapter):
    @tool
    def add(self, a: int, b: float = 1.0) -> float:
        """Add two numbers.

        Args:
            a: The first number.
            b: The second number.
        """
        return a + b

    @tool
    def count(self, n: int) -> Iterator[int]:
        """Count from 1 to n."""
        yield from range(1, n + 1)

    @tool
    def metadata(self) -> dict[str, str]:
        return self.session_context.metadata

    @tool
    def total(
        self, items: list[Item], currency: Literal["EUR", "USD"] = "EUR", note: bytes | None = None
    ) -> list[Item]:
        del currency, note
        return items

    @tool
    def echo(self, value: object = None) -> object:
        return value

    @tool
    def fail(self, message: str) -> None:
        raise ValueError(message)

    @tool
    def hold(self, started: str, release: str) -> str:
        """Open one pipe to show that the call runs, and return what arrives in the other one."""
        Path(started).write_text("started")
        return Path(release).read_text()

    @tool
    def held_count(self, started: str, release: str) -> Iterator[str]:
        """Stream one value, and wait before the second one."""
        yield "first"
        yield self.hold(started, release)

    @tool
    def kill_worker(self, log: str, times: int) -> int:
        """Kill the worker the first times, and then return the number of runs."""
        with Path(log).open("a") as file:
            file.write("x")
        runs = Path(log).stat().st_size
        if runs <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        return runs

    @tool
    def kill_worker_in_stream(self, log: str, times: int) -> Iterator[int]:
        yield self.kill_worker(log, times)

    @tool
    def report(self, lines: int) -> int:
        """Report progress and log lines."""
        for number in range(1, lines + 1):
            current_context().report_progress(number, lines)
            logging.getLogger("client_tools").warning("line %d", number)
        return lines

    @tool
    def reports(self, lines: int) -> Iterator[int]:
        yield self.report(lines)
