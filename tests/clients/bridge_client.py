"""Calls tools with the client of the Python package. The argument is the host's address. Prints `ok` at the end."""

import asyncio
import sys
import threading

import pytest

from snakepit_bridge import DeadlineExceededError, HostUnavailableError, InvalidArgumentError, NotFoundError
from snakepit_bridge.client import Client
from snakepit_bridge.errors import ToolFailed


def check_blocking(client: Client) -> None:
    assert client.call("add", a=1, b=2) == 3
    assert client.call("echo", x=None, y=[1, {"z": "ü"}]) == {"x": None, "y": [1, {"z": "ü"}]}
    assert list(client.stream("count", n=10_000)) == list(range(1, 10_001))
    endless = client.stream("count", n=1_000_000_000)
    assert next(endless) == 1
    del endless
    with pytest.raises(NotFoundError, match="did you mean `add`"):
        client.call("ad")
    with pytest.raises(InvalidArgumentError, match="`a`"):
        client.call("add", a="x", b=1)
    with pytest.raises(ToolFailed, match="on purpose"):
        client.call("fail", message="on purpose")
    with pytest.raises(DeadlineExceededError, match="sleep_for"):
        client.options(timeout=0.2).call("sleep_for", seconds=60)
    with pytest.raises(ValueError, match="timeout"):
        client.options(timeout=0).call("add", a=1, b=1)
    session = client.session("bob")
    assert session.call("whoami")["session_id"] == "bob"
    session.delete()
    with pytest.raises(NotFoundError, match="bob"):
        session.call("whoami")

    def add_one(number: int, sums: list[int]) -> None:
        sums.append(client.call("add", a=number, b=1))

    sums: list[int] = []
    threads = [threading.Thread(target=add_one, args=(number, sums)) for number in range(20)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(sums) == list(range(1, 21))


async def check_asynchronous(client: Client) -> None:
    sums = await asyncio.gather(*(client.call_async("add", a=number, b=1) for number in range(200)))
    assert sums == list(range(1, 201))
    assert [item async for item in client.stream_async("async_count", n=100)] == list(range(1, 101))
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(client.call_async("async_sleep", seconds=600), 0.1)
    assert await client.call_async("add", a=2, b=2) == 4


with Client(sys.argv[1]) as client:
    check_blocking(client)
    asyncio.run(check_asynchronous(client))
with pytest.raises(RuntimeError, match="closed"):
    client.call("add", a=1, b=2)
with pytest.raises(HostUnavailableError, match="snakepit serve"):
    Client("127.0.0.1:1")
print("ok")
