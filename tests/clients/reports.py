"""A client that receives the progress and the output of its calls."""

import asyncio
import sys

import pytest

from snakepit_bridge.client import Client
from snakepit_bridge.reports import LogLine, Progress

progress: list[Progress] = []
lines: list[LogLine] = []


def texts() -> list[str]:
    found = [line.text for line in lines]
    lines.clear()
    return found


with Client(sys.argv[1]) as client:
    watched = client.options(progress=progress.append, logs=lines.append)
    assert watched.call("train", steps=5, pause=0.01) == 5
    assert progress[0] == Progress(1, 5, "step 1"), progress
    assert progress[-1].fraction == 1, progress
    watched.call("speak")
    error = next(line for line in lines if line.text == "an error")
    assert (error.level, error.logger, error.stream) == (40, "shop.till", "stderr"), error
    assert {"printed", "from a child", "no newline"} <= set(texts())
    assert list(watched.stream("count", n=3)) == [0, 1, 2]
    assert texts() == ["item 0", "item 1", "item 2"]

    async def run() -> None:
        progress.clear()
        assert await watched.call_async("train", steps=3) == 3
        assert progress[-1].done == 3, progress
        assert [item async for item in watched.stream_async("count", n=2)] == [0, 1]
        assert texts() == ["item 0", "item 1"]

    asyncio.run(run())
    session = client.session("s").options(progress=progress.append)
    session.call("train", steps=1)
    assert progress[-1].done == 1
    assert not lines

    def fail(_: Progress) -> None:
        raise KeyError("callback")

    with pytest.raises(KeyError, match="callback"):
        client.options(progress=fail).call("stall")
print("ok")
