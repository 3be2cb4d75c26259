"""SIGINT, as Ctrl+C sends it, while a tester runs a call on the main thread."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snakepit_bridge import BaseAdapter, CallCancelled, ToolFailed, tool
from snakepit_bridge.testing import ToolTester


class Interrupted(BaseAdapter):
    #: What happened in the tools.
    events: list[str] = []  # noqa: RUF012

    @tool
    async def wait(self) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(20)
        finally:
            await asyncio.sleep(0)
            self.events.append("cleaned up")

    @tool
    def sleep(self) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(20)
        except CallCancelled:
            self.events.append("cleaned up")
            raise

    @tool
    def numbers(self) -> Iterator[int]:
        yield 1
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(20)
        finally:
            self.events.append("cleaned up")

    @tool
    def raise_one(self) -> None:
        raise KeyboardInterrupt

    @tool
    def add(self, a: int, b: int) -> int:
        return a + b


class Concurrent(Interrupted):
    concurrency = 2


def call(tester: ToolTester, name: str) -> Any:
    return tester.stream(name) if name == "numbers" else tester.call(name)


def interrupted(function: Callable[[], Any]) -> float:
    """Run a tool that sends SIGINT. Return the seconds after which the exception arrived."""
    Interrupted.events.clear()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        function()
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("adapter", "name"),
    [(Interrupted, "wait"), (Interrupted, "sleep"), (Interrupted, "numbers"), (Concurrent, "wait")],
)
def test_sigint_cancels_the_call(adapter: type[BaseAdapter], name: str) -> None:
    with ToolTester(adapter) as tester:
        assert interrupted(lambda: call(tester, name)) < 15
        assert tester.call("add", a=1, b=2) == 3
    assert Interrupted.events == ["cleaned up"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_tool_that_raises_the_exception_itself_fails() -> None:
    with ToolTester(Interrupted) as tester, pytest.raises(ToolFailed, match="KeyboardInterrupt"):
        tester.call("raise_one")


def test_a_handler_of_the_program_stays() -> None:
    seen: list[int] = []

    def handle(number: int, _: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    try:
        with ToolTester(Interrupted) as tester, pytest.raises(ToolFailed, match="KeyboardInterrupt"):
            tester.call("sleep")
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, previous)
