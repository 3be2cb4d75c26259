"""The progress and the output that a tester records."""

# ruff: noqa: T201

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import logging
import sys
import threading
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool

import pytest

from snakepit_bridge import BaseAdapter, ToolFailed, current_context, tool
from snakepit_bridge.testing import CallRecord, ToolTester

_logger = logging.getLogger("shop.till")
_pool = concurrent.futures.ThreadPoolExecutor(1)


class Reporting(BaseAdapter):
    @tool
    def speak(self) -> None:
        """Write in every way."""
        print("printed")
        print("a part, ", end="")
        print("in stderr", file=sys.stderr)
        print("and the rest")
        sys.stdout.buffer.write(b"bytes\n")
        sys.stderr.write("\r 10%\r100%\n")
        _logger.error("failed: %s", 7)
        thread = threading.Thread(target=print, args=("from a thread",))
        thread.start()
        thread.join()
        _pool.submit(print, "from a pool").result()
        with contextlib.redirect_stdout(io.StringIO()):
            print("redirected")
        print("no newline", end="")

    @tool
    async def train(self, epochs: int) -> int:
        """Report each epoch."""
        for epoch in range(epochs):
            current_context().report_progress(epoch + 1, epochs, f"epoch {epoch + 1}")
            await asyncio.to_thread(print, "epoch", epoch + 1)
        return epochs

    @tool
    def count(self, n: int) -> Iterator[int]:
        """Stream numbers."""
        for number in range(n):
            print("item", number)
            yield number

    @tool
    def outer(self) -> int:
        """Call another tool."""
        print("before")
        result = int(current_context().call_tool("train", epochs=1))
        print("after")
        return result

    @tool
    def fail(self) -> None:
        """Fail with a caught and an uncaught exception."""
        try:
            raise KeyError("tea")
        except KeyError:
            _logger.exception("no such item")
        raise ValueError("no")

    @tool
    def stall(self) -> None:
        """Report, and wait for the end of the call."""
        print("waiting")
        current_context().report_progress(1, 2)
        while not current_context().cancelled:
            threading.Event().wait(0.001)


def texts(record: CallRecord) -> list[str]:
    return [line.text for line in record.logs]


def test_output_of_every_kind_is_recorded_and_still_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with ToolTester(Reporting) as tester:
        with pytest.raises(RuntimeError, match="no call of this tester"):
            _ = tester.last_call
        print("of the test")
        stdout = sys.stdout
        tester.call("speak")
        assert sys.stdout is stdout
        record = tester.last_call
    assert record.tool == "speak"
    expected = [
        *("printed", "in stderr", "a part, and the rest", "bytes", "100%", "failed: 7"),
        *("from a thread", "from a pool", "no newline"),
    ]
    assert texts(record) == expected
    error = record.logs[5]
    assert (error.level, error.logger, error.stream) == (logging.ERROR, "shop.till", "stderr")
    assert [line.stream for line in record.logs[:2]] == ["stdout", "stderr"]
    captured = capsys.readouterr()
    assert captured.out.startswith("of the test\nprinted\na part, and the rest\n")
    assert captured.err.startswith("in stderr\n")


class Overlapping(BaseAdapter):
    concurrency = 3

    @tool
    async def meet(self, name: str, peers: int) -> None:
        """Print and report after all peers have begun."""
        self.process.begun = getattr(self.process, "begun", 0) + 1
        while self.process.begun < peers:
            await asyncio.sleep(0.001)
        print("name", name)
        await asyncio.to_thread(print, "thread of", name)
        current_context().report_progress(1, 1, name)


def test_records_of_concurrent_calls_are_kept_apart() -> None:
    with ToolTester(Overlapping) as tester:
        calls = [tester.start("meet", name=name, peers=3) for name in "abc"]
        for call, name in zip(calls, "abc", strict=True):
            call.result(timeout=30)
            assert texts(call.record) == [f"name {name}", f"thread of {name}"]
            assert [report.message for report in call.record.progress] == [name]


@pytest.mark.parametrize("is_async", [False, True])
def test_progress_is_recorded_for_each_call(is_async: bool) -> None:
    with ToolTester(Reporting) as tester:

        def call(epochs: int) -> int:
            if is_async:
                return int(asyncio.run(tester.call_async("train", epochs=epochs)))
            return int(tester.call("train", epochs=epochs))

        assert call(3) == 3
        first = tester.last_call
        assert [(report.done, report.total, report.message) for report in first.progress][1:] == [
            (2, 3, "epoch 2"),
            (3, 3, "epoch 3"),
        ]
        assert first.progress[-1].fraction == 1
        assert texts(first) == ["epoch 1", "epoch 2", "epoch 3"]
        call(1)
        assert (len(tester.last_call.progress), len(first.progress)) == (1, 3)
        if is_async:
            asyncio.run(tester.stream_async("count", n=2))
        else:
            tester.stream("count", n=2)
        assert texts(tester.last_call) == ["item 0", "item 1"]


def test_the_output_of_a_nested_call_belongs_to_the_outer_call_too() -> None:
    with ToolTester(Reporting) as tester:
        assert tester.call("outer") == 1
        record = tester.last_call
        assert (record.tool, texts(record), record.progress) == ("outer", ["before", "epoch 1", "after"], [])


class Pooled(BaseAdapter):
    pool: ThreadPool | None = None

    @tool
    def ask(self) -> str:
        """Ask a thread that an earlier call may have started for the context."""
        Pooled.pool = Pooled.pool or ThreadPool(1)
        return str(Pooled.pool.apply(session_of_thread))


def session_of_thread() -> str:
    print("from a pool of another kind")
    try:
        return current_context().session_id
    except RuntimeError as error:
        return str(error)


def test_a_thread_of_a_pool_does_not_keep_the_context_of_an_earlier_call() -> None:
    for session in ("first", "second"):
        with ToolTester(Pooled, session_id=session) as tester:
            assert "no tool runs here" in tester.call("ask")
            assert texts(tester.last_call) == []
    assert Pooled.pool is not None
    Pooled.pool.terminate()


def test_a_failed_call_keeps_its_record() -> None:
    with ToolTester(Reporting) as tester:
        with pytest.raises(ToolFailed):
            tester.call("fail")
        record = tester.last_call
    assert texts(record)[:2] == ["no such item", "Traceback (most recent call last):"]
    assert record.logs[0].logger == "shop.till"


def test_a_running_call_shows_its_record() -> None:
    with ToolTester(Reporting) as tester:
        call = tester.start("stall")
        for _ in range(10_000):
            if call.record.progress:
                break
            threading.Event().wait(0.001)
        assert texts(call.record) == ["waiting"]
        assert call.record.progress[0].fraction == 0.5
        print("of the test")
        call.cancel()
        with pytest.raises(Exception, match="was cancelled"):
            call.result(timeout=10)
        assert texts(call.record) == ["waiting"]
