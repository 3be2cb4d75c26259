"""Code that a call of a concurrent worker runs, and that would disturb the other calls."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snakepit_bridge.client import Client
from snakepit_bridge.testing import Daemon

TOOLS = """
import asyncio, os, sys, time

concurrency = 20
calls = 0

async def plain(x: int) -> int:
    await asyncio.sleep(0)
    return x

async def wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"

async def in_thread(x: int) -> int:
    return await asyncio.to_thread(int, x)

async def pid() -> int:
    return os.getpid()

async def environments() -> list[str]:
    program = "import os; print(open(f'/proc/{os.getppid()}/environ').read())"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    return [open("/proc/self/environ").read(), (await child.communicate())[0].decode(), str(dict(os.environ))]

async def remove_readers() -> str:
    loop = asyncio.get_running_loop()
    for fd in range(256):
        loop.remove_reader(fd)
    return "removed"

async def own_loop() -> int:
    asyncio._set_running_loop(None)
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(asyncio.sleep(0, 5))
    finally:
        loop.close()

async def cancel_all() -> int:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    return len(others)

turns = 0

async def reschedule() -> None:
    loop = asyncio.get_running_loop()
    def again() -> None:
        global turns
        turns += 1
        loop.call_soon(again)
    again()

async def turns_of_callbacks() -> int:
    return turns
"""

THREAD_TOOLS = """
import os, sys

threads = 4

def fork(end: str) -> int:
    child = os.fork()
    if child == 0:
        if end == "raise":
            raise RuntimeError("in the child")
        if end == "exit":
            sys.exit(3)
        return -1
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Client]]:
    directory = tmp_path_factory.mktemp("adapters")
    daemons = []

    def serve(name: str, source: str) -> Client:
        path = Path(directory, f"{name}.py")
        path.write_text(textwrap.dedent(source))
        daemon = Daemon(str(path))
        daemons.append(daemon)
        return daemon.client()

    yield serve
    for daemon in daemons:
        daemon.stop()


@pytest.fixture(scope="module")
def client(serve: Callable[[str, str], Client]) -> Client:
    return serve("disturbing", TOOLS)


@pytest.mark.parametrize("tool", ["remove_readers", "own_loop", "cancel_all", "reschedule"])
def test_a_call_that_disturbs_the_event_loop_leaves_the_others_alone(client: Client, tool: str) -> None:
    before = client.call("pid")
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(client.call, "wait", seconds=0.3) for _ in range(4)]
        client.options(timeout=10).call(tool)
        assert [client.options(timeout=10).call("plain", x=x) for x in range(20)] == list(range(20))
        assert client.options(timeout=10).call("in_thread", x=5) == 5
        if tool != "own_loop":
            # Until the call that replaced the running loop ends, the others cannot find theirs.
            assert [call.result(30) for call in waiting] == ["done"] * 4
    assert client.call("pid") == before, "the worker was replaced"


def test_a_callback_that_schedules_itself_ends_with_its_call(client: Client) -> None:
    client.call("reschedule")
    for _ in range(20):
        client.call("plain", x=1)
    turns = client.call("turns_of_callbacks")
    for _ in range(20):
        client.call("plain", x=1)
    assert client.call("turns_of_callbacks") == turns


def test_tools_cannot_read_the_key_of_the_output(client: Client) -> None:
    ours, of_child, variables = client.call("environments")
    for environment in (ours, of_child):
        key = environment.partition("SNAKEPIT_OUTPUT_KEY=")[2].partition("\0")[0]
        assert set(key) == {"-"}, key
    assert "SNAKEPIT_OUTPUT_KEY" not in variables


@pytest.mark.parametrize(("end", "code"), [("return", 0), ("raise", 1), ("exit", 3)])
def test_a_fork_in_a_thread_ends_with_its_function(serve: Callable[[str, str], Client], end: str, code: int) -> None:
    assert serve(f"forking_{end}", THREAD_TOOLS).options(timeout=20).call("fork", end=end) == code
