"""The context of a call: programs, host tools, and names of the original protocol."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snakepit_bridge import BaseAdapter, NotFoundError, ToolError, tool
from snakepit_bridge.testing import ToolFailed, ToolTester


class Callback(BaseAdapter):
    @tool
    def keep(self, name: str, value: Any) -> bool:
        self.session_context.programs[name] = value
        return name in self.session_context.programs

    @tool
    def keep_bytes(self, name: str, value: bytes) -> None:
        self.session_context.programs[name] = value

    @tool
    def fetch(self, name: str) -> Any:
        return self.session_context.programs[name]

    @tool
    def names(self) -> list[str]:
        programs = self.session_context.programs
        assert len(programs) == len(list(programs))
        return list(programs)

    @tool
    def forget(self, name: str) -> None:
        del self.session_context.programs[name]

    @tool
    def ask(self, a: int, b: int) -> Any:
        return self.session_context.call_host_tool("multiply", a=a, b=b)

    @tool
    def ask_by_attribute(self, a: int, b: int) -> Any:
        return self.session_context.host.multiply(a=a, b=b)

    @tool
    async def ask_by_attribute_async(self, a: int, b: int) -> Any:
        return await self.session_context.host["multiply"].call_async(a=a, b=b)

    @tool
    async def count_down_by_attribute(self, n: int) -> Any:
        stream = self.session_context.host.countdown.stream
        return [*stream(n=n), *[result async for result in stream(n=n)]]

    @tool
    def describe_host(self) -> Any:
        host = self.session_context.host
        with pytest.raises(AttributeError, match=r"use `host\['__len'\]`"):
            getattr(host, "__len")
        with pytest.raises(NotFoundError, match="host tool `multiplx` not found; did you mean `multiply`"):
            host.multiplx.spec  # noqa: B018
        assert ("fail" in host, "ghost" in host, len(host), repr(host.fail)) == (True, False, 3, "HostTool('fail')")
        assert dir(host) == sorted(host)
        return [sorted(host), host.multiply.spec["description"]]

    @tool
    def ask_for_nothing_by_attribute(self) -> Any:
        return self.session_context.host.ghost()

    @tool
    def ask_by_its_old_name(self, a: int, b: int) -> Any:
        assert "multiply" in self.session_context.elixir_tools
        by_position = self.session_context.call_elixir_tool("multiply", a=a, b=b)
        assert by_position == self.session_context.call_elixir_tool(tool_name="multiply", a=a, b=b)
        return by_position

    @tool
    async def ask_async(self, a: int, b: int) -> Any:
        return await self.session_context.call_host_tool_async("multiply", a=a, b=b)

    @tool
    def ask_for_nothing(self) -> Any:
        return self.session_context.call_host_tool("ghost")

    @tool
    def ask_to_fail(self) -> Any:
        return self.session_context.call_host_tool("fail")

    @tool
    def read_stream(self, n: int, limit: int) -> Any:
        with self.session_context.stream_host_tool("countdown", n=n) as results:
            read = [result for result, _ in zip(results, range(limit), strict=False)]
        assert list(results) == []
        return read

    @tool
    async def read_stream_async(self, n: int) -> Any:
        return [result async for result in self.session_context.stream_host_tool("countdown", n=n)]

    @tool
    async def read_and_close(self, n: int) -> Any:
        async with contextlib.aclosing(self.session_context.stream_host_tool("countdown", n=n)) as results:
            first = await anext(results)
        return [first, *[result async for result in results], *results]

    @tool
    async def watch_and_close(self, name: str) -> Any:
        context = self.session_context
        context[name] = 1
        async with contextlib.aclosing(context.watch(name, initial=True)) as watch:
            first = await anext(watch)
        return [first.kind, *[update.kind async for update in watch], *watch]

    @tool
    def raise_tool_error(self) -> Any:
        raise ToolError("no such item", code="not_found", data={"left": 3})

    @tool
    def whoami(self) -> dict[str, Any]:
        context = self.session_context
        return {
            "session": context.session_id,
            "metadata": context.metadata,
            "left": context.time_remaining(),
            "deadline": context.deadline,
            "cancelled": context.cancelled,
            "repr": repr(context),
        }

    @tool
    def end_session(self) -> None:
        with self.session_context as context:
            context.programs["temporary"] = 1


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


def fail() -> None:
    raise RuntimeError("not today")


def countdown(n: int) -> Iterator[int | None]:
    if n < 0:
        raise ValueError("n is negative")
    yield from range(n, 0, -1)
    yield None


@pytest.fixture
def tester() -> ToolTester:
    host_tools: dict[str, Callable[..., Any]] = {"multiply": multiply, "fail": fail, "countdown": countdown}
    return ToolTester(Callback, session_id="s", host_tools=host_tools, metadata={"k": "v"})


def test_programs_are_a_mapping_that_outlives_the_call(tester: ToolTester) -> None:
    assert tester.call("keep", name="settings", value={"depth": [1, 2]})
    tester.call("keep_bytes", name="weights", value=b"\x00\x01")
    assert tester.call("fetch", name="settings") == {"depth": [1, 2]}
    assert tester.call("fetch", name="weights") == b"\x00\x01"
    assert tester.call("names") == ["settings", "weights"]
    tester.call("forget", name="weights")
    assert tester.call("names") == ["settings"]
    for name in ["fetch", "forget"]:
        with pytest.raises(ToolFailed) as caught:
            tester.call(name, name="weights")
        assert caught.value.type == "snakepit_bridge.errors.ProgramNotFoundError"


def test_programs_need_a_session() -> None:
    with pytest.raises(ToolFailed, match="no session"), ToolTester(Callback, session_id="") as tester:
        tester.call("names")


@pytest.mark.parametrize(
    "name", ["ask", "ask_by_attribute", "ask_by_attribute_async", "ask_by_its_old_name", "ask_async"]
)
def test_host_tools_can_be_called_through_every_method(tester: ToolTester, name: str) -> None:
    assert tester.call(name, a=6, b=7) == 42


def test_host_tools_are_attributes(tester: ToolTester) -> None:
    assert tester.call("describe_host") == [["countdown", "fail", "multiply"], "Multiply."]
    assert tester.call("count_down_by_attribute", n=2) == [2, 1, None, 2, 1, None]


def test_failures_of_host_tools_have_specific_types(tester: ToolTester) -> None:
    for name in ["ask_for_nothing", "ask_for_nothing_by_attribute"]:
        with pytest.raises(ToolFailed) as caught:
            tester.call(name)
        assert caught.value.type == "snakepit_bridge.errors.NotFoundError"
    with pytest.raises(ToolFailed, match="not today") as caught:
        tester.call("ask_to_fail")
    assert caught.value.type == "snakepit_bridge.errors.HostToolError"


def test_streams_of_host_tools_are_iterators(tester: ToolTester) -> None:
    assert tester.call("read_stream", n=2, limit=9) == [2, 1, None]
    assert tester.call("read_stream", n=9, limit=2) == [9, 8]
    assert tester.call("read_stream_async", n=2) == [2, 1, None]
    assert tester.call("read_and_close", n=9) == [9]
    assert tester.call("watch_and_close", name="n") == ["initial"]
    with pytest.raises(ToolFailed, match="n is negative") as caught:
        tester.call("read_stream", n=-1, limit=1)
    assert caught.value.type == "snakepit_bridge.errors.HostToolError"


def test_callers_receive_the_code_and_data_of_a_tool_error(tester: ToolTester) -> None:
    with pytest.raises(ToolFailed) as caught:
        tester.call("raise_tool_error")
    error = caught.value
    assert (error.type, error.message) == ("snakepit_bridge.errors.ToolError", "no such item")
    assert (error.code, error.data, error.exception_args) == ("not_found", {"left": 3}, ("no such item",))


def test_a_context_describes_its_call(tester: ToolTester) -> None:
    described = tester.call("whoami")
    assert described == {
        "session": "s",
        "metadata": {"k": "v"},
        "left": None,
        "deadline": None,
        "cancelled": False,
        "repr": "SessionContext(session_id='s')",
    }


def test_the_end_of_the_context_block_deletes_the_session(tester: ToolTester) -> None:
    tester.call("end_session")
    assert tester.call("names") == []
