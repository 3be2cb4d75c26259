"""Runs the scenarios of session state with the client of the package. Prints `ok` at the end.

The argument is the address of a host with the adapter `state_tools:StateTools`.
"""

import asyncio
import os
import sys
import threading
import time
from functools import partial

import pytest

from raising import error_message, raised
from snakepit_bridge import (
    ClientClosedError,
    DeadlineExceededError,
    HostUnavailableError,
    InvalidArgumentError,
    InvalidTypeError,
    NotFoundError,
    SessionContext,
    VersionConflictError,
)
from snakepit_bridge._call_options import CallOptions
from snakepit_bridge.client import Client, Session
from snakepit_bridge.watch import Watch
from state_checks import CHECKS


class Context(Session, SessionContext):
    """A session of a client with the methods of a tool's context."""

    #: The default name of the writer.
    worker_id = "python"


def scenarios(client: Client) -> None:
    """Runs the scenarios that also run in tools."""
    for name, check in CHECKS.items():
        client.session(name)
        outcome = check(Context(client._connection, CallOptions(session_id=name)))
        if asyncio.iscoroutine(outcome):
            asyncio.run(outcome)


def other_writers(client: Client, address: str) -> None:
    """Watches see the writes of tools and other clients, and no write is lost."""
    session = client.session("writers")
    session["n"] = 0
    with session.watch("n") as watch:
        session.call("set_value", name="n", value=7)
        update = next(watch)
        assert (update.kind, update.variable and update.variable.value) == ("set", 7)
        assert session.variable_history("n", 1)[0].changed_by == update.source != "python"
        session.set_variable("n", 8, {"changed_by": "me"})
        assert next(watch).source == "me"

    with Client(address) as other_client:
        read = session.variable("n")
        other_client.session("writers")["n"] = 0
        write = partial(session.set_variable, "n", 9, expected_version=read.version)
        conflict = raised(VersionConflictError, write)
        assert (conflict.expected, conflict.actual) == (read.version, read.version + 1)

        def count(session: Session) -> None:
            for _ in range(50):
                session.update("n", lambda value: value + 1)

        sessions = [session, other_client.session("writers")]
        writers = [threading.Thread(target=count, args=(each,)) for each in sessions]
        [writer.start() for writer in writers]
        session.call("count_up", name="n", times=50)
        [writer.join() for writer in writers]
    assert session["n"] == 150
    assert session.variable("n").version == read.version + 151

    client.global_programs["shared"] = [1]
    session.programs["own"] = b"weights"
    assert session.global_programs["shared"] == [1]
    assert "own" not in client.global_programs
    del client.global_programs["shared"]


async def error_of_end(watch: Watch, kind: type[BaseException]) -> str:
    """Returns the message of the error with which a watch ends."""
    try:
        await anext(watch)
    except kind as error:
        return str(error)
    raise AssertionError("the watch delivered an update")


def timeouts(client: Client) -> None:
    """The session's timeout applies to each request and to each wait of a watch."""
    session = client.session("timeouts").options(timeout=1)
    session["n"] = 0
    assert "deadline" in error_message(DeadlineExceededError, lambda: next(session.watch("n")))
    assert "deadline" in asyncio.run(error_of_end(session.watch("n"), DeadlineExceededError))
    # Each request has the full timeout.
    assert session["n"] == 0

    def conflict(value: int) -> int:
        # Each attempt of the update conflicts with this write.
        client.session("timeouts").set_variable("n", value + 1)
        return value

    # The timeout of an update includes its retries.
    start = time.monotonic()
    with pytest.raises((VersionConflictError, DeadlineExceededError)):
        session.update("n", conflict)
    assert time.monotonic() - start < 3


def sessions(client: Client) -> None:
    """Errors name the session that has ended, and invalid session ids are rejected."""
    session = client.session("brief")
    watch = session.watch()
    session.delete()
    assert "`brief`" in error_message(NotFoundError, lambda: next(watch))
    assert "`brief`" in error_message(NotFoundError, lambda: session.v.n)
    error_message(InvalidArgumentError, lambda: client.session(""))
    error_message(InvalidTypeError, lambda: client.session(5))


def forks(client: Client, address: str) -> None:
    """A fork must open its own connection. The streams of its parent continue."""
    session = client.session("forks")
    session["n"] = 0
    watch = session.watch("n")
    call = session.options().stream("relay", name="n")
    next(call)
    child = os.fork()
    if child == 0:
        try:
            actions = [
                lambda: session["n"],
                lambda: client.session("other"),
                lambda: client.call("checks"),
                lambda: next(call),
                lambda: next(watch),
                lambda: watch.__anext__().send(None),
                lambda: asyncio.run(client.call_async("checks")),
            ]
            for action in actions:
                assert "fork" in error_message(HostUnavailableError, action)
            client.close()
            with Client(address) as child_client:
                child_client.session("forks").call("count_up", name="n", times=1)
                assert child_client.session("forks")["n"] == 1
            os._exit(0)
        finally:
            os._exit(9)
    assert os.waitpid(child, 0)[1] == 0
    values = [next(watch).variable.value, next(call)["value"]]
    assert values == [1, 1], values


def closing(address: str) -> None:
    """After a client is closed, its requests and watches raise ClientClosedError."""
    client = Client(address)
    session = client.session("closing")
    session["n"] = 0
    unread = session.watch(initial=True)

    async def waits() -> None:
        watches = [session.watch(), session.watch()]
        messages = asyncio.gather(
            asyncio.to_thread(error_message, ClientClosedError, lambda: next(watches[0])),
            error_of_end(watches[1], ClientClosedError),
        )
        threading.Timer(0.05, client.close).start()
        assert await messages == ["the client is closed"] * 2
        assert [list(watch) for watch in watches] == [[], []]

    asyncio.run(waits())
    for action in [lambda: next(unread), lambda: session["n"], session.delete, lambda: client.session("closing")]:
        assert error_message(ClientClosedError, action) == "the client is closed"


def main(address: str) -> None:
    """Runs all scenarios."""
    with Client(address) as client:
        scenarios(client)
        other_writers(client, address)
        timeouts(client)
        sessions(client)
        forks(client, address)
    closing(address)
    print("ok")


main(sys.argv[1])
