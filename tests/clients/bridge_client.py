"""Calls tools with the client of the Python package. The argument is the host's address. Prints `ok` at the end."""

import asyncio
import math
import sys
import threading
from decimal import Decimal

import numpy as np
import pytest

from snakepit_bridge import (
    DeadlineExceededError,
    HostUnavailableError,
    InvalidArgumentError,
    InvalidTypeError,
    NotFoundError,
)
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
    with pytest.raises(InvalidArgumentError, match="`a`") as invalid:
        client.call("add", a="x", b=1)
    assert invalid.value.violations == [("a", "is a string, expected float")]
    add = client.tools()["add"]
    assert (add["provider"], add["supports_streaming"]) == ("default", False)
    assert add["input_schema"]["properties"]["a"] == {"type": "number", "description": "The first number."}
    assert add["result_schema"] == {"anyOf": [{"type": "integer"}, {"type": "number"}]}
    assert add["item_schema"] is None
    with pytest.raises(ToolFailed, match="on purpose"):
        client.call("fail", message="on purpose")
    with pytest.raises(DeadlineExceededError, match="sleep_for"):
        client.options(timeout=0.2).call("sleep_for", seconds=60)
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


def check_invalid_arguments(client: Client, address: str) -> None:
    """Arguments that cannot be sent, and invalid timeouts, raise errors that name the argument and its valid values."""
    for timeout, error, problem in [
        (0, InvalidArgumentError, "is 0.0"),
        (-1, InvalidArgumentError, "is -1.0"),
        (1e-12, InvalidArgumentError, "is 1e-12"),
        (1e300, InvalidArgumentError, "is 1e300"),
        (10**400, InvalidArgumentError, "is too large"),
        (math.nan, InvalidArgumentError, "is NaN"),
        ("5", InvalidTypeError, "is a `str`"),
        (True, InvalidTypeError, "is a `bool`"),
        ([5], InvalidTypeError, "is a `list`"),
        (np.array([5.0]), InvalidTypeError, "is a `numpy.ndarray`"),
        (np.array([5.0, 6.0]), InvalidTypeError, "is a `numpy.ndarray`"),
        (np.bool_(True), InvalidTypeError, "is a `numpy.bool_?`"),
        (Decimal("sNaN"), InvalidTypeError, "is a `decimal.Decimal`"),
    ]:
        expected = f"{problem}, expected .*seconds from 1e-9 to 359999996400, or inf for the maximum"
        for action in (
            lambda timeout=timeout: client.options(timeout=timeout),
            lambda timeout=timeout: client.session("bob", timeout=timeout),
            lambda timeout=timeout: client.session("bob").options(timeout=timeout),
        ):
            with pytest.raises(error, match=f"`timeout` {expected}") as caught:
                action()
            assert not caught.value.may_have_run
        with pytest.raises(error, match=f"`connect_timeout` {expected}"):
            Client(address, connect_timeout=timeout)
    for timeout, error in [(-1, InvalidArgumentError), (math.nan, InvalidArgumentError), ("5", InvalidTypeError)]:
        with Client(address) as closing, pytest.raises(error, match=r"`timeout` is .*expected .*seconds from 0 to"):
            closing.close(timeout)  # type: ignore[arg-type]
    for timeout in (math.inf, 359_999_996_400, np.float32(5), Decimal("2.5")):
        with Client(address, connect_timeout=timeout) as patient:
            assert patient.options(timeout=timeout).call("add", a=1, b=2) == 3
            assert patient.session("patient", timeout=timeout).list_variables() == []
            patient.close(timeout)

    loop = []
    loop.append(loop)
    for value, error, problem in [
        (1j, InvalidTypeError, r"is a `complex`, which has no wire form; pass a str"),
        (loop, InvalidArgumentError, ".*contains itself; pass a flatter structure"),
        ("\ud800", InvalidArgumentError, "contains a lone surrogate"),
    ]:
        with pytest.raises(error, match=f"^argument `a` of tool `add` {problem}") as caught:
            client.call("add", a=value, b=1)
        assert not caught.value.may_have_run
        with pytest.raises(error, match="the value of variable `v`"):
            client.session("bob").set_variable("v", value)
    with pytest.raises(InvalidTypeError, match="`name` is an `int`, expected a str"):
        client.call(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"`name` is '.ud800', which cannot be encoded as UTF-8"):
        client.call("\ud800")
    problem = r"`name of an argument` is '.ud800', which cannot be encoded as UTF-8"
    with pytest.raises(InvalidArgumentError, match=problem):
        client.call("add", **{"\ud800": 1})
    with pytest.raises(InvalidTypeError, match="`idempotent` is a `str`, expected a bool"):
        client.options(idempotent="no")  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="`address` is an `int`, expected a str"):
        Client(50051)  # type: ignore[arg-type]


async def check_asynchronous(client: Client) -> None:
    sums = await asyncio.gather(*(client.call_async("add", a=number, b=1) for number in range(200)))
    assert sums == list(range(1, 201))
    assert [item async for item in client.stream_async("async_count", n=100)] == list(range(1, 101))
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(client.call_async("async_sleep", seconds=600), 0.1)
    assert await client.call_async("add", a=2, b=2) == 4


with Client(sys.argv[1]) as client:
    check_blocking(client)
    check_invalid_arguments(client, sys.argv[1])
    asyncio.run(check_asynchronous(client))
with pytest.raises(RuntimeError, match="closed"):
    client.call("add", a=1, b=2)
for address, cause in [("127.0.0.1:1", "Connection refused"), ("no-such-host.invalid:1", "lookup")]:
    with pytest.raises(HostUnavailableError, match=f"{address}: [^:]*{cause}.*; start one with `snakepit serve`"):
        Client(address)
print("ok")
