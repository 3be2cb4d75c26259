"""Scenarios for the client of the package with faults of the host and the network. Prints `ok` at the end.

Arguments: the host's address, its pid, and the name of the scenario. The host has the adapter `unlucky:UnluckyTools`,
two workers and a queue limit of four calls. For the scenario of exhausted memory, its requests may use 8 MiB, and the
queue limit is 1000.
"""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from overload import exhausted_memory_rejects_calls_and_ends_no_other
from proxy import FaultyProxy
from snakepit_bridge import (
    ClientClosedError,
    ConnectTimeoutError,
    DeadlineExceededError,
    HostUnavailableError,
    InvalidArgumentError,
    OverloadedError,
    ShuttingDownError,
    ToolFailed,
    UnsupportedError,
    WorkerLostError,
)
from snakepit_bridge.client import Client

#: The time that a call may take beyond its deadline on a busy machine, in seconds.
GRACE = 1.5


def deadline_error(action: Callable[[], Any], timeout: float) -> DeadlineExceededError:
    """Returns the deadline error of an action. Checks that it is raised at the deadline."""
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError) as raised:
        action()
    took = time.monotonic() - start
    assert timeout * 0.9 < took < timeout + GRACE, (took, timeout)
    return raised.value


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits until a condition is true, which another process fulfils."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def calls_to_a_frozen_host_end_at_their_deadline(address: str, pid: int) -> None:
    """The client enforces deadlines if the host does not answer."""
    proxy = FaultyProxy(address)
    with Client(proxy.address) as over_proxy, Client(address) as direct:
        proxy.is_discarding.set()
        check_all_deadlines(over_proxy)
        with pytest.raises(ConnectTimeoutError, match=r"within 0\.5 s"):
            Client(proxy.address, connect_timeout=0.5)
        os.kill(pid, signal.SIGSTOP)
        try:
            check_all_deadlines(direct)
            error = deadline_error(lambda: Client(address, connect_timeout=0.5), 0.5)
            assert isinstance(error, HostUnavailableError)
            assert not error.may_have_run
        finally:
            os.kill(pid, signal.SIGCONT)
        assert direct.call("add", a=1, b=2) == 3


def connecting_to_a_server_that_is_not_a_host_fails(address: str, pid: int) -> None:
    """Connecting fails if the server sends an HTML page or closes the connection. No call can have run."""
    page = b"<html><title>502 Bad Gateway</title></html>"
    head = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(page)
    for response in (head + page, head.replace(b"502 Bad Gateway", b"503 Service Unavailable") + page, b""):
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve(listener: socket.socket = listener, response: bytes = response) -> None:
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = listener.accept()
                        with connection:
                            connection.recv(65536)
                            connection.sendall(response)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            host, port = listener.getsockname()
            with pytest.raises(HostUnavailableError) as raised:
                Client(f"{host}:{port}", connect_timeout=5)
            assert not raised.value.may_have_run
            # Unlike `close`, `shutdown` interrupts `accept` in another thread.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def check_all_deadlines(client: Client) -> None:
    """Checks that each kind of request ends at its deadline."""
    caller = client.options(timeout=0.5)
    error = deadline_error(lambda: caller.call("add", a=1, b=2), 0.5)
    assert "`add`" in str(error)
    assert error.may_have_run
    deadline_error(lambda: caller.call("length", data=bytes(1 << 20)), 0.5)
    deadline_error(lambda: next(caller.stream("count", n=3)), 0.5)
    deadline_error(lambda: asyncio.run(caller.call_async("add", a=1, b=2)), 0.5)

    async def first_chunk() -> Any:
        return await anext(caller.stream_async("count", n=3))

    deadline_error(lambda: asyncio.run(first_chunk()), 0.5)
    deadline_error(lambda: client.session("silent", timeout=0.5), 0.5)
    programs = caller.global_programs
    for action in (
        lambda: programs.put("p", b""),
        lambda: programs["p"],
        lambda: list(programs),
        lambda: programs.__delitem__("p"),
    ):
        deadline_error(action, 0.5)


def session_requests_to_a_frozen_host_end_at_their_timeout(address: str, pid: int) -> None:
    """Every request of a session has the session's timeout."""
    with Client(address) as client:
        session = client.session("quiet", timeout=0.5)
        session["n"] = 1
        watch = session.watch("n")
        os.kill(pid, signal.SIGSTOP)
        try:
            for action in (
                lambda: session["n"],
                lambda: session.set_variable("n", 2),
                lambda: session.register_variable("m", None, 1),
                lambda: session.get_variables(["n"]),
                lambda: session.set_variables({"n": 3}),
                lambda: session.list_variables(),
                lambda: session.variable_history("n"),
                lambda: session.rollback_variable("n", 0),
                lambda: session.delete_variable("n"),
                lambda: session.update("n", lambda n: n),
                lambda: session.programs.put("p", b""),
                lambda: session.programs["p"],
                lambda: session.watch("n"),
                lambda: session.call("add", a=1, b=2),
                session.delete,
            ):
                deadline_error(action, 0.5)
        finally:
            os.kill(pid, signal.SIGCONT)
        with pytest.raises(DeadlineExceededError):
            next(watch)


def running_calls_survive_the_close_of_their_client(address: str, pid: int) -> None:
    """Running calls continue after the close of their client, or end at its timeout with ClientClosedError."""
    with Client(address) as client, tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as threads:
        stream = client.stream("count", n=100_000)
        assert next(stream) == 0
        sleeps = Path(folder) / "sleeps"
        running = threads.submit(client.call, "sleep", seconds=0.5, path=str(sleeps))
        wait_until(sleeps.exists)
        client.close()
        assert running.result() == "slept"
    # The stream has more chunks than its initial credit.
    assert sum(1 for _ in stream) == 99_999
    with pytest.raises(ClientClosedError) as rejected:
        client.call("add", a=1, b=2)
    assert isinstance(rejected.value, RuntimeError)
    assert not rejected.value.may_have_run

    client = Client(address)
    stream = client.stream("count", n=1000, pause=0.01)
    assert next(stream) == 0
    start = time.monotonic()
    client.close(timeout=0.3)
    assert 0.25 < time.monotonic() - start < 0.3 + GRACE
    with pytest.raises(ClientClosedError, match="while the call ran") as interrupted:
        list(stream)
    assert interrupted.value.may_have_run
    client.close(timeout=0)

    client = Client(address)
    stream = client.stream("count", n=5)
    assert next(stream) == 0
    client.close(timeout=30)
    assert list(stream) == [1, 2, 3, 4]
    assert time.monotonic() - start < 20

    # `close` also waits for a large call whose request is not sent yet.
    client = Client(address)
    with ThreadPoolExecutor() as threads:
        large = client._options.start(client._native, "length", {"data": bytes(1 << 20)}, stream=False)
        closed = threads.submit(client.close, timeout=20)
        with pytest.raises(TimeoutError):
            closed.result(timeout=0.3)
        assert large.result() == 1 << 20
        closed.result()

    # `close` ends at its timeout if the host is frozen.
    client = Client(address)
    call = client.stream("count", n=3, pause=10)
    os.kill(pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        client.close(timeout=0.3)
        with pytest.raises(ClientClosedError):
            next(call)
        assert time.monotonic() - start < 0.3 + GRACE
    finally:
        os.kill(pid, signal.SIGCONT)


def calls_continue_without_a_reference_to_their_client(address: str, _: int) -> None:
    """The garbage collector may free a client during its calls."""
    expected = list(range(50_000))
    assert list(Client(address).stream("count", n=50_000)) == expected
    stream = Client(address).stream("count", n=50_000)
    gc.collect()
    assert list(stream) == expected
    assert asyncio.run(Client(address).call_async("add", a=1, b=2)) == 3
    assert Client(address).call("length", data=bytes(1 << 20)) == 1 << 20


def descriptors_in_use() -> int:
    """Counts the open descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def thousands_of_calls_share_a_few_descriptors(address: str, _: int) -> None:
    """Thousands of asynchronous calls use a few descriptors in each event loop."""
    limit = descriptors_in_use() + 48
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    async def call_many(client: Client) -> list[int]:
        calls = [client.call_async("add", a=number, b=1) for number in range(3000)]
        try:
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            assert descriptors_in_use() < limit

    with Client(address) as client:
        for _ in range(3):
            outcomes = asyncio.run(call_many(client))
            # The host rejects calls when its short queue is full.
            assert all(isinstance(outcome, int | OverloadedError) for outcome in outcomes), outcomes[:5]
        gc.collect()
        session = client.session("descriptors")
        session["n"] = 0

        async def watches() -> None:
            opened = [session.watch("n", initial=True) for _ in range(50)]
            assert len(await asyncio.gather(*map(anext, opened))) == 50

        asyncio.run(watches())
        # Closed event loops release their descriptors before the garbage collector runs.
        gc.disable()
        for number in range(100):
            assert asyncio.run(client.call_async("add", a=number, b=1)) == number + 1
        gc.enable()
        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(lambda: asyncio.run(client.call_async("add", a=1, b=2))) for _ in range(40)]
            assert [run.result() for run in runs] == [3] * 40


def outcome(client: Client, number: int) -> Any:
    """Returns the value of a call or its error."""
    try:
        return client.call("add", a=number, b=1)
    except HostUnavailableError as error:
        return error


def a_cut_connection_loses_at_most_the_running_calls(address: str, _: int) -> None:
    """A cut connection loses at most the running calls. The client repeats idempotent ones."""
    proxy = FaultyProxy(address)
    with Client(proxy.address) as client:
        idempotent = client.options(idempotent=True)
        session = client.session("cuts")
        session["n"] = 0
        for number in range(60):
            proxy.cut()
            # The client may send the first call before it notices the cut.
            outcomes = [outcome(client, number) for _ in range(20)]
            lost = [error for error in outcomes if isinstance(error, HostUnavailableError)]
            assert len(lost) <= 1, lost
            assert all(error.may_have_run for error in lost)
            assert outcomes.count(number + 1) == 20 - len(lost)
            proxy.cut()
            assert idempotent.call("add", a=number, b=1) == number + 1
            proxy.cut()
            assert session["n"] == 0
            proxy.cut()
            assert client.session("cuts")["n"] == 0
        assert list(client.stream("count", n=3)) == [0, 1, 2]
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "runs")
            for number in range(30):
                cut = threading.Timer(0.001 * (number % 5), proxy.cut)
                cut.start()
                with contextlib.suppress(HostUnavailableError):
                    client.call("append", path=path)
                cut.join()
            # The client never repeats a call that is not idempotent.
            assert len(Path(path).read_text().splitlines()) <= 30
        # If the port is closed, no call can have run.
        proxy.close()
        with pytest.raises(HostUnavailableError):
            [client.call("add", a=1, b=2) for _ in range(2)]
        with pytest.raises(HostUnavailableError, match="cannot reach") as rejected:
            idempotent.call("add", a=1, b=2)
        assert not rejected.value.may_have_run

    # The first attempt ran. The client cannot send the second one.
    proxy = FaultyProxy(address)
    with Client(proxy.address) as client, tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as threads:
        path = Path(folder) / "ran"
        call = threads.submit(client.options(idempotent=True).call, "sleep", seconds=5, path=str(path))
        wait_until(path.exists)
        proxy.close()
        proxy.cut()
        with pytest.raises(HostUnavailableError, match="cannot reach") as lost:
            call.result()
        assert lost.value.may_have_run


def each_rejection_has_its_exception_class(address: str, _: int) -> None:
    """Each kind of rejection raises its own class, with a hint."""
    with Client(address) as client:
        with pytest.raises(UnsupportedError, match=r"`stream\(\)`") as unsupported:
            client.call("count", n=3)
        assert not unsupported.value.may_have_run
        with pytest.raises(UnsupportedError, match=r"`stream_async\(\)`"):
            asyncio.run(client.call_async("count", n=3))
        with pytest.raises(InvalidArgumentError, match=r"options\(timeout"):
            client.call("add", a=1, b=2, timeout=3)
        limit = 100 * 1024 * 1024
        with pytest.raises(InvalidArgumentError, match="limit is"):
            client.call("length", data=bytes(limit))
        many = {f"a{number}": 1 for number in range(270_000)}
        for caller in (client, client.options(idempotent=True)):
            with pytest.raises(InvalidArgumentError, match="fields") as rejected:
                caller.call("add", **many)
            assert not rejected.value.may_have_run
        for program in (client.global_programs, client.session("large").programs):
            with pytest.raises(InvalidArgumentError, match=str(limit)):
                program["p"] = bytes(limit)
        with pytest.raises(WorkerLostError) as lost:
            client.call("crash")
        assert lost.value.may_have_run
        with pytest.raises(ToolFailed) as failed:
            client.call("fail")
        assert (failed.value.type, failed.value.message) == ("ValueError", "caf\\udce9")
        assert (type(failed.value).__name__, str(failed.value)) == ("ValueError", "caf\\udce9")
        assert str(failed.value.failure) == "ValueError: caf\\udce9"
        assert 'raise ValueError("caf' in failed.value.traceback
        assert "in fail" in str(failed.value.__cause__)
        with pytest.raises(DeadlineExceededError) as late:
            client.options(timeout=0.2).call("sleep", seconds=60)
        assert late.value.may_have_run

    async def fill_queue(client: Client) -> list[Any]:
        calls = [client.call_async("sleep", seconds=0.2) for _ in range(100)]
        return await asyncio.gather(*calls, return_exceptions=True)

    with Client(address) as client:
        errors = [outcome for outcome in asyncio.run(fill_queue(client)) if outcome != "slept"]
        assert errors
        for error in errors:
            assert isinstance(error, OverloadedError), error
            assert not error.may_have_run
            assert error.retry_after
            assert error.retry_after > 0


def a_stopping_host_ends_calls_and_watches_with_an_error(address: str, pid: int) -> None:
    """Calls, streams and watches raise ShuttingDownError when the host stops."""
    client = Client(address)
    session = client.session("stopping")
    session["n"] = 0
    watch, other = session.watch("n"), session.watch()
    stream = client.stream("count", n=1000, pause=0.1)
    assert next(stream) == 0

    async def expect_end() -> None:
        with pytest.raises(ShuttingDownError, match="shut"):
            await anext(other)

    with ThreadPoolExecutor() as threads, tempfile.TemporaryDirectory() as folder:
        sleeps = Path(folder) / "sleeps"
        call = threads.submit(client.call, "sleep", seconds=600, path=str(sleeps))
        blocked = threads.submit(lambda: next(watch))
        awaited = threads.submit(lambda: asyncio.run(expect_end()))
        wait_until(sleeps.exists)
        os.kill(pid, signal.SIGTERM)
        with pytest.raises(ShuttingDownError, match="shut"):
            blocked.result()
        awaited.result()
        with pytest.raises(ShuttingDownError):
            call.result()
        with pytest.raises(ShuttingDownError):
            list(stream)


def forks_may_drop_and_close_a_client(address: str, _: int) -> None:
    """A fork can drop and close the client and streams of its parent, even while threads of the parent use them."""
    client = Client(address)
    is_stopping = threading.Event()

    def call_repeatedly() -> None:
        while not is_stopping.is_set():
            client.options(timeout=10).call("add", a=1, b=2)

    threads = [threading.Thread(target=call_repeatedly) for _ in range(3)]
    [thread.start() for thread in threads]
    session = client.session("forks")
    session["n"] = 0
    for _ in range(60):
        stream = client.stream("count", n=1000, pause=0.01)
        watch = session.watch("n")
        child = os.fork()
        if child == 0:
            with pytest.raises(HostUnavailableError, match="fork"):
                client.call("add", a=1, b=2)
            watch.close()
            client.close(timeout=5)
            del stream, watch, session, client
            gc.collect()
            os._exit(0)
        end = time.monotonic() + 10
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                raise AssertionError("the fork hangs")
            time.sleep(0.001)
        assert status == 0
        watch.close()
        del stream
    is_stopping.set()
    [thread.join() for thread in threads]


def threads_share_a_client_and_a_stream(address: str, _: int) -> None:
    """Several threads use one client and read one stream."""
    with Client(address) as client, ThreadPoolExecutor(8) as pool:
        stream = client.stream("count", n=5000)
        parts = list(pool.map(lambda _: list(stream), range(8)))
        assert sorted(item for part in parts for item in part) == list(range(5000))


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        calls_to_a_frozen_host_end_at_their_deadline,
        session_requests_to_a_frozen_host_end_at_their_timeout,
        connecting_to_a_server_that_is_not_a_host_fails,
        running_calls_survive_the_close_of_their_client,
        calls_continue_without_a_reference_to_their_client,
        thousands_of_calls_share_a_few_descriptors,
        a_cut_connection_loses_at_most_the_running_calls,
        each_rejection_has_its_exception_class,
        forks_may_drop_and_close_a_client,
        threads_share_a_client_and_a_stream,
        a_stopping_host_ends_calls_and_watches_with_an_error,
        exhausted_memory_rejects_calls_and_ends_no_other,
    )
}

if __name__ == "__main__":
    SCENARIOS[sys.argv[3]](sys.argv[1], int(sys.argv[2]))
    print("ok")
