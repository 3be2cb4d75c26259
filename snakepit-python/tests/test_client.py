"""The client: its address, listings, sessions, options, invalid arguments, and its end."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import daemons
from snakepit_bridge import (
    Client,
    ClientClosedError,
    HostUnavailableError,
    InvalidArgumentError,
    InvalidTypeError,
    NotFoundError,
)
from snakepit_bridge._daemon import Daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with daemons.start(workers=2) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.address) as client:
        yield client


def test_the_default_address_is_that_of_the_environment(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAKEPIT_SERVER", daemon.socket)
    with Client() as client:
        assert client.call("add", a=1) == 2.0
        assert repr(client) == f"<Client {daemon.socket}>"
    monkeypatch.setenv("SNAKEPIT_SERVER", "nonsense")
    with pytest.raises(InvalidArgumentError, match=r"SNAKEPIT_SERVER.*nonsense"):
        Client()
    # An argument takes precedence, and an empty variable counts as none.
    with Client(daemon.address) as client:
        assert client.call("add", a=1) == 2.0
    monkeypatch.setenv("SNAKEPIT_SERVER", "")
    assert repr(Client(connect=False)) == "<Client 127.0.0.1:50051>"


def test_tools_have_descriptions_schemas_and_signatures(client: Client) -> None:
    tools = client.tools()
    add = tools["add"]
    assert add["name"] == "add"
    assert add["description"].startswith("Add two numbers.")
    assert add["signature"] == "add(*, a: int, b: float = 1.0) -> float"
    assert add["input_schema"]["required"] == ["a"]
    assert add["result_schema"] == {"type": "number"}
    assert [parameter["name"] for parameter in add["parameters"]] == ["a", "b"]
    assert tools["count"]["signature"] == "count(*, n: int) -> Iterator[int]"
    assert tools["metadata"]["signature"] == "metadata() -> dict[str, str]"
    assert tools["fail"]["signature"] == "fail(*, message: str) -> None"
    expected = """total(*, items: list[Item], currency: Literal["EUR", "USD"] = 'EUR', note: bytes | None = None)"""
    assert tools["total"]["signature"] == f"{expected} -> list[Item]"
    assert client.options(timeout=5).tools() == tools


def test_status_and_workers_describe_the_pool(client: Client) -> None:
    client.call("add", a=1)
    workers = client.workers()
    assert len(workers) == 2
    assert all(worker["pid"] and worker["started_at"] and worker["address"] for worker in workers)
    assert {worker["state"] for worker in workers} <= {"idle", "busy"}
    status = client.status()
    assert (status["queued"], status["waiting_for_room"], len(status["workers"])) == (0, 0, 2)
    before = status["calls"]["failed"]
    with pytest.raises(ValueError, match="no"):
        client.call("fail", message="no")
    calls = client.status()["calls"]
    assert calls["failed"] == before + 1
    assert calls["succeeded"] >= 1


def test_a_call_has_metadata(client: Client) -> None:
    entries = {"user": "ada", "empty": "", "text": "ä€😀"}
    assert client.options(metadata=entries).call("metadata").items() >= entries.items()
    assert "user" not in client.call("metadata")
    session = client.session("with-metadata").options(metadata={"user": "bob"})
    assert session.call("metadata")["user"] == "bob"
    assert "user" not in session.options(timeout=5).call("metadata")


def test_a_session_has_a_ttl_and_metadata_and_can_be_ended(client: Client) -> None:
    session = client.session("brief", ttl=89.5, metadata={"user": "ada"})
    info = session.info()
    assert (info["id"], info["ttl"], info["metadata"]["user"]) == ("brief", 90.0, "ada")
    assert 0 < info["expires_in"] <= 90
    assert info["created_at"] is not None
    session["x"] = 1
    session.programs["p"] = b"data"
    # The options of an existing session do not change it.
    assert client.session("brief", ttl=5).info()["ttl"] == 90.0
    info = session.info()
    assert (info["variable_count"], info["program_count"]) == (1, 1)
    session.delete()
    for action in (session.info, session.delete, lambda: session["x"]):
        with pytest.raises(NotFoundError, match="`brief`"):
            action()
    assert "brief" in repr(session)


@pytest.mark.parametrize(
    "address",
    ["", "localhost", "ho st:1", "localhost:70000", "localhost:-1", "localhost:x", "ftp://x:1", "unix:", "::"],
)
def test_malformed_addresses_are_rejected(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="address"):
        Client(address, connect=False)


@pytest.mark.parametrize("address", [b"localhost:1", 50051, ["localhost:1"]])
def test_addresses_must_be_text(address: Any) -> None:
    with pytest.raises(InvalidTypeError, match="address"):
        Client(address)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", -1),
        ("timeout", 0),
        ("timeout", math.nan),
        ("timeout", "5"),
        ("timeout", True),
        ("timeout", 1e300),
        ("idempotent", "no"),
        ("metadata", {"a": 1}),
        ("metadata", [("a", "b")]),
        ("metadata", {"a": "\ud800"}),
        ("retries", -1),
        ("retries", 1.5),
        ("retries", 10**6),
        ("retries", True),
        ("wait_for_room", -1),
        ("wait_for_room", math.nan),
        ("wait_for_room", "1"),
        ("progress", 5),
        ("logs", "print"),
    ],
)
def test_invalid_options_are_rejected_at_once(client: Client, option: str, value: Any) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(InvalidArgumentError, match=option):
        client.options(**options)
    with pytest.raises(InvalidArgumentError, match=option):
        client.session("options").options(**options)


@pytest.mark.parametrize(
    ("option", "value"),
    [("ttl", 0), ("ttl", -5), ("ttl", math.nan), ("ttl", math.inf), ("ttl", 1e300), ("ttl", "5"), ("metadata", "a")],
)
def test_invalid_options_of_sessions_are_rejected(client: Client, option: str, value: Any) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(InvalidArgumentError, match=option):
        client.session("invalid", **options)
    with pytest.raises(NotFoundError):
        client.session("valid").options().call("no_such_tool")


@pytest.mark.parametrize("timeout", [-1, math.nan, "5", 1e300])
def test_invalid_timeouts_of_methods_are_rejected(client: Client, timeout: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout"):
        client.close(timeout=timeout)
    with pytest.raises(InvalidArgumentError, match="timeout"):
        client.wait_ready(timeout)
    with pytest.raises(InvalidArgumentError, match="connect_timeout"):
        Client("localhost:1", connect_timeout=timeout)
    assert client.call("add", a=1) == 2.0


def test_huge_metadata_is_rejected(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="1001 entries"):
        client.options(metadata={str(number): "" for number in range(1001)}).call("add", a=1)
    with pytest.raises(InvalidArgumentError, match="metadata"):
        client.options(metadata={"k" * 300: ""}).call("add", a=1)
    with pytest.raises(InvalidArgumentError, match="limit"):
        client.options(metadata={"k": "v" * (101 * 2**20)}).call("add", a=1)
    with pytest.raises(InvalidArgumentError, match=r"metadata|limit"):
        client.session("huge", metadata={"k": "v" * (101 * 2**20)})
    assert client.call("add", a=1) == 2.0


def test_closing_a_client_closes_its_connection(daemon: Daemon) -> None:
    with daemons.Proxy(daemon) as proxy:
        client = Client(proxy.address)
        session = client.session("closing")
        session["x"] = 1
        watch = session.watch("x")
        client.close()
        # Although the client, the session and the watch still exist.
        proxy.wait_closed()
        for action in (lambda: session["x"], lambda: next(watch), lambda: client.call("add", a=1), client.wait_ready):
            with pytest.raises(ClientClosedError):
                action()
        assert proxy.connections == 1
        client.close()


def test_a_running_call_keeps_the_connection_of_a_closed_client(daemon: Daemon, tmp_path: Path) -> None:
    pipes = daemons.Pipes(tmp_path)
    results: list[object] = []
    with daemons.Proxy(daemon) as proxy:
        client = Client(proxy.address)
        thread = threading.Thread(target=lambda: results.append(client.call("hold", **pipes.arguments)))
        thread.start()
        pipes.wait_started()
        client.close()
        pipes.finish()
        thread.join(20)
        assert results == ["done"]
        proxy.wait_closed()


def test_closing_with_a_timeout_ends_the_remaining_calls(daemon: Daemon, tmp_path: Path) -> None:
    pipes = daemons.Pipes(tmp_path)
    errors: list[ClientClosedError] = []

    def call() -> None:
        with pytest.raises(ClientClosedError) as caught:
            closing.call("hold", **pipes.arguments)
        errors.append(caught.value)

    with daemons.Proxy(daemon) as proxy:
        closing = Client(proxy.address)
        thread = threading.Thread(target=call)
        thread.start()
        pipes.wait_started()
        closing.close(timeout=0)
        thread.join(20)
        assert errors[0].may_have_run
        proxy.wait_closed()


def test_dropping_a_client_closes_its_connection(daemon: Daemon) -> None:
    with daemons.Proxy(daemon) as proxy:
        client = Client(proxy.address)
        assert client.call("add", a=1) == 2.0
        del client
        gc.collect()
        proxy.wait_closed()


def test_a_client_that_does_not_connect_raises_with_its_first_request() -> None:
    with daemons.Proxy() as proxy:
        client = Client(proxy.address, connect=False)
        for action in (lambda: client.call("add", a=1), client.tools, lambda: client.session("s")):
            with pytest.raises(HostUnavailableError) as caught:
                action()
            assert caught.value.is_retryable
        with pytest.raises(HostUnavailableError, match="start one with `snakepit serve`"):
            Client(proxy.address)
