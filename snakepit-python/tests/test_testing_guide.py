"""The tests in docs/testing-in-python.md."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quotas import Quotas, UnknownItemError
from shop import Shop
from snakepit_bridge import (
    BaseAdapter,
    CallCancelledError,
    DeadlineExceededError,
    ToolError,
    ToolFailed,
    current_context,
    tool,
)
from snakepit_bridge.testing import Daemon, ToolTester
from tuning import Tuning

Testers = Callable[..., ToolTester]


class Slow(BaseAdapter):
    started = threading.Event()
    cleaned_up = False

    def initialize(self) -> None:
        Slow.cleaned_up = False
        Slow.started.clear()

    @tool
    def wait(self, seconds: float) -> None:
        """Wait."""
        try:
            time.sleep(seconds)
        finally:
            Slow.cleaned_up = True

    @tool
    def wait_for_cancel(self) -> None:
        """Wait in short steps."""
        try:
            Slow.started.set()
            while True:
                time.sleep(0.001)
        finally:
            Slow.cleaned_up = True


class Training(BaseAdapter):
    @tool
    def train(self, epochs: int) -> None:
        """Train."""
        for epoch in range(epochs):
            current_context().report_progress(epoch + 1, epochs)
        logging.getLogger("training").warning("no improvement")


def test_a_price(snakepit_tester: Testers) -> None:
    tester = snakepit_tester(Shop)
    assert tester.call("price", item="tea", count=2) == 19.98


def test_a_price_over_a_connection(snakepit_daemon: Callable[..., Daemon]) -> None:
    with snakepit_daemon("shop:Shop", workers=2).client() as client:
        assert client.call("price", item="tea", count=2) == 19.98


def test_the_state_of_a_session(snakepit_tester: Testers) -> None:
    tester = snakepit_tester(Tuning)
    tester.call("prepare")
    tester.call("step", loss=0.5)
    assert tester.context["rate"] == 0.05
    assert [chunk.data for chunk in tester.stream("rates", limit=1)] == [0.05]


def test_a_failing_host_tool(snakepit_tester: Testers) -> None:
    def discount(item: str) -> float:
        raise ToolError("no such item", code="not_found", data={"item": item})

    tester = snakepit_tester(Shop, host_tools={"discount": discount})
    with pytest.raises(ToolFailed) as caught:
        tester.call("sale", item="tea")
    assert caught.value.code == "not_found"


def test_an_exception_and_its_cause(snakepit_tester: Testers) -> None:
    tester = snakepit_tester(Quotas)
    with pytest.raises(UnknownItemError) as caught:
        tester.call("shelf", item="milk")
    assert (caught.value.code, caught.value.data) == ("not_found", {"known": ["tea"]})
    original = caught.value.__cause__
    assert isinstance(original, UnknownItemError)
    assert isinstance(original.__cause__, KeyError)


def test_progress_and_output(snakepit_tester: Testers) -> None:
    tester = snakepit_tester(Training)
    tester.call("train", epochs=3)
    assert [report.fraction for report in tester.last_call.progress][-1] == 1
    assert [(line.level, line.text) for line in tester.last_call.logs] == [(logging.WARNING, "no improvement")]


def test_a_deadline(snakepit_tester: Testers) -> None:
    tester = snakepit_tester(Slow)
    with pytest.raises(DeadlineExceededError):
        tester.options(timeout=0.1).call("wait", seconds=30)
    assert Slow.cleaned_up


def test_a_cancelled_call(snakepit_tester: Testers) -> None:
    call = snakepit_tester(Slow).start("wait_for_cancel")
    Slow.started.wait(10)
    call.cancel()
    with pytest.raises(CallCancelledError):
        call.result(timeout=10)
    assert Slow.cleaned_up


def test_the_page_shows_these_tests() -> None:
    page = (Path(__file__).parents[2] / "docs" / "testing-in-python.md").read_text()
    # The page has no annotations.
    source = re.sub(r": Testers|: Callable\[\.\.\., Daemon\]", "", Path(__file__).read_text())
    source = re.sub(r"(def test_\w+\(.*\)) -> None:", r"\1:", source)
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 4
    for block in blocks:
        for function in block.strip().split("\n\n\n"):
            assert function in source, function
