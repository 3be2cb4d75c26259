"""Requests without a connection: every method of every class raises the same error as a call, and reads are retried."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import daemons
from snakepit_bridge import AsyncClient, Client, ConnectTimeoutError, DeadlineExceededError, HostUnavailableError
from snakepit_bridge._async_state import AsyncGlobalPrograms, AsyncPrograms
from snakepit_bridge._call_options import CallOptions
from snakepit_bridge._daemon import Daemon
from snakepit_bridge.client import AsyncSession, Session
from snakepit_bridge.programs import GlobalPrograms, Programs

CONNECT_TIMEOUT = 0.2

CALLER: dict[str, Callable[[Any], Any]] = {
    "call": lambda client: client.call("add", a=1),
    "map": lambda client: anext(client.map("add", [{"a": 1}])) if is_async(client) else next(client.map("add", [{}])),
    "restart_workers": lambda client: client.restart_workers(),
    "status": lambda client: client.status(),
    "stream": lambda client: anext(client.stream("count", n=1)) if is_async(client) else next(client.stream("count")),
    "tools": lambda client: client.tools(),
    "workers": lambda client: client.workers(),
}
SYNC_CALLER: dict[str, Callable[[Any], Any]] = {
    "call_async": lambda client: asyncio.run(client.call_async("add", a=1)),
    "stream_async": lambda client: asyncio.run(anext(client.stream_async("count", n=1))),
}
CLIENT: dict[str, Callable[[Any], Any]] = {"session": lambda client: client.session("s")}
VARIABLES: dict[str, Callable[[Any], Any]] = {
    "delete_variable": lambda session: session.delete_variable("x"),
    "get": lambda session: session.get("x"),
    "get_variable": lambda session: session.get_variable("x"),
    "get_variables": lambda session: session.get_variables(["x"]),
    "list_variables": lambda session: session.list_variables(),
    "register_variable": lambda session: session.register_variable("x", None, 1),
    "rollback_variable": lambda session: session.rollback_variable("x", 0),
    "set_variable": lambda session: session.set_variable("x", 1),
    # The form of a long list depends on the type of the variable, which the client requests first.
    "set_variables": lambda session: session.set_variables({"x": [1.0] * 100_000}),
    "update": lambda session: session.update("x", lambda x: x),
    "variable": lambda session: session.variable("x"),
    "variable_history": lambda session: session.variable_history("x"),
    "watch": lambda session: session.watch("x"),
}
OLD_NAMES: dict[str, Callable[[Any], Any]] = {
    "update_variable": lambda session: session.update_variable("x", 1),
    "update_variables": lambda session: session.update_variables({"x": 1}),
}
SESSION: dict[str, Callable[[Any], Any]] = {
    "delete": lambda session: session.delete(),
    "info": lambda session: session.info(),
}
ITEMS: dict[str, Callable[[Any], Any]] = {
    "__contains__": lambda mapping: "x" in mapping,
    "__delitem__": lambda mapping: mapping.__delitem__("x"),
    "__getitem__": lambda mapping: mapping["x"],
    "__setitem__": lambda mapping: mapping.__setitem__("x", b"1"),
}
MAPPING: dict[str, Callable[[Any], Any]] = {
    **ITEMS,
    "__iter__": lambda mapping: list(mapping),
    "__len__": lambda mapping: len(mapping),
}
PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "cached": lambda programs: programs.cached("x"),
    "get": lambda programs: programs.get("x"),
    "put": lambda programs: programs.put("x", b"1"),
}
ASYNC_PROGRAMS: dict[str, Callable[[Any], Any]] = {
    **PROGRAMS,
    "contains": lambda programs: programs.contains("x"),
    "delete": lambda programs: programs.delete("x"),
    "names": lambda programs: programs.names(),
}

#: The requests of each class. They are coroutines in the classes for coroutines.
REQUESTS: dict[type, dict[str, Callable[[Any], Any]]] = {
    Client: {**CALLER, **SYNC_CALLER, **CLIENT},
    AsyncClient: {**CALLER, **CLIENT, "connect": lambda client: client.connect()},
    Session: {**CALLER, **SYNC_CALLER, **VARIABLES, **SESSION, **ITEMS, **OLD_NAMES},
    AsyncSession: {
        **CALLER,
        **VARIABLES,
        **SESSION,
        "contains": lambda session: session.contains("x"),
        "set": lambda session: session.set("x", 1),
    },
    Programs: {**PROGRAMS, **MAPPING, "update": lambda programs: programs.update({"x": b"1"})},
    GlobalPrograms: {**PROGRAMS, **MAPPING, "update": lambda programs: programs.update({"x": b"1"})},
    AsyncPrograms: ASYNC_PROGRAMS,
    AsyncGlobalPrograms: ASYNC_PROGRAMS,
}
#: Methods without a request, with requests of other methods, or with their own time limit.
OTHERS = {
    *("batch_updates", "close", "global_programs", "options", "programs", "session_id", "v"),
    *("clear", "items", "keys", "pop", "popitem", "setdefault", "values", "wait_ready"),
}


def is_async(target: Any) -> bool:
    return type(target).__name__.startswith("Async")


def create(kind: type, address: str, **options: Any) -> Any:
    """Return an object of the class, whose client is not connected. The session need not exist."""
    if issubclass(kind, AsyncClient | AsyncSession | AsyncPrograms):
        async_client = AsyncClient(address, connect_timeout=CONNECT_TIMEOUT)
        async_session = AsyncSession(async_client._connection, CallOptions(session_id="s", **options))
        return {
            AsyncClient: async_client,
            AsyncSession: async_session,
            AsyncPrograms: async_session.programs,
            AsyncGlobalPrograms: async_session.global_programs,
        }[kind]
    client = Client(address, connect=False, connect_timeout=CONNECT_TIMEOUT)
    session = Session(client._connection, CallOptions(session_id="s", **options))
    return {
        Client: client,
        Session: session,
        Programs: session.programs,
        GlobalPrograms: session.global_programs,
    }[kind]


def run(request: Callable[[Any], Any], target: Any) -> Any:
    if not is_async(target):
        return request(target)

    async def await_it() -> Any:
        answer: Awaitable[Any] = request(target)
        return await answer

    return asyncio.run(await_it())


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with daemons.start(workers=2) as daemon:
        yield daemon


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[str]:
    """The address of a socket that accepts connections and never answers."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "frozen"))
        listener.listen(1000)
        yield f"unix:{tmp_path}/frozen"


def test_the_table_has_all_requests() -> None:
    for kind, requests in REQUESTS.items():
        public = {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}
        named = {name for name in requests if not name.startswith("_")}
        assert public - OTHERS == named, kind


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_host_that_does_not_answer_is_reported_after_the_connect_timeout(kind: type, frozen: str) -> None:
    for name, request in REQUESTS[kind].items():
        start = time.monotonic()
        with pytest.raises(ConnectTimeoutError) as caught:
            run(request, create(kind, frozen))
        assert time.monotonic() - start < 10, name
        expected = f"cannot reach a host at {frozen}: it did not answer within {CONNECT_TIMEOUT} s"
        assert str(caught.value).startswith(expected), name
        assert caught.value.is_retryable, name


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_missing_host_is_reported_with_its_address_and_the_cause(kind: type, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/missing"
    for name, request in REQUESTS[kind].items():
        with pytest.raises(HostUnavailableError) as caught:
            run(request, create(kind, address))
        message = str(caught.value)
        assert message.startswith(f"cannot reach a host at {address}: No such file"), name
        assert message.endswith("start one with `snakepit serve`"), name
        assert caught.value.is_retryable, name


def test_a_request_ends_at_its_own_timeout_while_the_client_connects(frozen: str) -> None:
    client = Client(frozen, connect=False, connect_timeout=60)
    session = Session(client._connection, CallOptions(session_id="s", timeout=0.2))
    for request in (lambda: session["x"], lambda: session.call("add", a=1), session.tools):
        with pytest.raises(DeadlineExceededError) as caught:
            request()
        assert not caught.value.may_have_run


def test_a_broken_connection_is_reported_as_for_calls(daemon: Daemon) -> None:
    with daemons.Proxy(daemon) as proxy:
        client = Client(proxy.address)
        session = client.session("broken")
        session["x"] = 1
        proxy.refuse()
        for request in (lambda: session["x"], session.info, client.tools, lambda: session.programs.get("x")):
            with pytest.raises(HostUnavailableError, match=f"cannot reach a host at {proxy.address}: .*snakepit serve"):
                request()


@pytest.mark.parametrize("kind", [Session, AsyncSession])
def test_reads_are_retried_and_writes_are_not(kind: type, daemon: Daemon) -> None:
    with Client(daemon.address) as client:
        client.session("s")["x"] = 1
    reads = [
        VARIABLES["get_variable"],
        VARIABLES["list_variables"],
        VARIABLES["variable_history"],
        SESSION["info"],
        CALLER["tools"],
        lambda session: session.global_programs.names() if is_async(session) else list(session.programs),
    ]
    for read in reads:
        with daemons.Proxy() as proxy:
            session = create(kind, proxy.address, retries=100, timeout=60)
            timer = threading.Timer(0.2, proxy.listen, [daemon])
            timer.start()
            run(read, session)
            timer.join()
    with daemons.Proxy() as proxy:
        session = create(kind, proxy.address, retries=100, timeout=60)
        for name in ("set_variable", "delete_variable", "rollback_variable", "register_variable"):
            start = time.monotonic()
            with pytest.raises(HostUnavailableError):
                run(VARIABLES[name], session)
            assert time.monotonic() - start < 20, name


def test_retries_are_bounded_by_their_number_and_by_the_timeout() -> None:
    with daemons.Proxy() as proxy:
        start = time.monotonic()
        with pytest.raises(HostUnavailableError):
            run(VARIABLES["get_variable"], create(Session, proxy.address, retries=2))
        assert 0.3 <= time.monotonic() - start < 10
        start = time.monotonic()
        with pytest.raises(HostUnavailableError):
            run(VARIABLES["get_variable"], create(Session, proxy.address, retries=1000, timeout=0.5))
        assert time.monotonic() - start < 10
        # Closing ends the retries.
        session = create(Session, proxy.address, retries=1000)
        timer = threading.Timer(0.2, session._native.close, [None])
        timer.start()
        with pytest.raises(RuntimeError, match="closed"):
            run(VARIABLES["get_variable"], session)
        timer.join()
