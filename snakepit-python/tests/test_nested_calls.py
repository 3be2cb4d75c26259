"""Calls between tools, and programs that a worker loads once."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from snakepit_bridge import BaseAdapter, DeadlockError, NotFoundError, Process, tool
from snakepit_bridge.errors import InvalidArgumentError, ToolFailed
from snakepit_bridge.testing import ToolTester, call_tool, call_tool_async


class Composed(BaseAdapter):
    @classmethod
    def process_init(cls, factor: int = 2) -> None:
        cls.process.factor = factor
        cls.process.calls = 0

    @tool
    def double(self, x: int) -> int:
        self.process.calls += 1
        self.session_context["last"] = x
        return x * int(self.process.factor)

    @tool
    def sum_of_doubles(self, numbers: list[int]) -> list[int]:
        context = self.session_context
        total = sum(context.call_tool("double", x=number) for number in numbers)
        # The other calls ran in another worker.
        return [total, context["last"], int(self.process.calls)]

    @tool
    async def later(self, x: int) -> int:
        result: int = await self.session_context.call_tool_async("double", x=x)
        return result

    @tool
    def fail(self) -> None:
        raise ValueError("no")

    @tool
    def call(self, name: str, arguments: dict[str, Any]) -> Any:
        return self.session_context.call_tool(name, **arguments)

    @tool
    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    @tool
    def sum_of_stream(self, name: str, n: int) -> int:
        return sum(self.session_context.stream_tool(name, n=n))

    @tool
    async def list_of_stream(self, n: int) -> list[int]:
        return [number async for number in self.session_context.stream_tool("count", n=n)]

    @tool
    def endless(self) -> None:
        self.session_context.call_tool("endless")


def test_tools_call_other_tools() -> None:
    assert call_tool(Composed, "sum_of_doubles", numbers=[1, 2]) == [6, 2, 0]
    assert call_tool(Composed, "sum_of_doubles", numbers=[1], adapter_args={"factor": 5}) == [5, 1, 0]
    assert call_tool(Composed, "later", x=4) == 8
    tools = {"price": lambda item: len(item)}
    assert call_tool(Composed, "call", name="price", arguments={"item": "tea"}, host_tools=tools) == 3


def test_tools_stream_the_results_of_other_tools() -> None:
    assert call_tool(Composed, "sum_of_stream", name="count", n=4) == 6
    assert call_tool(Composed, "list_of_stream", n=3) == [0, 1, 2]
    tools = {"numbers": lambda n: iter([n, n])}
    assert call_tool(Composed, "sum_of_stream", name="numbers", n=4, host_tools=tools) == 8
    with pytest.raises(ToolFailed, match="NotFoundError: tool `missing` not found"):
        call_tool(Composed, "sum_of_stream", name="missing", n=4)


async def _later() -> Any:
    return await call_tool_async(Composed, "later", x=4)


def test_tools_call_other_tools_in_a_running_loop() -> None:
    import asyncio

    assert asyncio.run(_later()) == 8


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "problem"),
    [
        ("fail", {}, ToolFailed, "no"),
        ("missing", {}, NotFoundError, "tool `missing` not found"),
        ("double", {}, InvalidArgumentError, "argument `x` of tool `double` is missing"),
        ("endless", {}, ToolFailed, "call of tool `endless` would wait for itself"),
    ],
)
def test_errors_of_called_tools(name: str, arguments: dict[str, Any], kind: type[Exception], problem: str) -> None:
    with pytest.raises(ToolFailed, match=problem) as caught:
        call_tool(Composed, "call", name=name, arguments=arguments)
    assert isinstance(caught.value.__cause__, kind)


def test_a_tool_that_calls_itself_forever_is_a_deadlock() -> None:
    with pytest.raises(ToolFailed, match="each of the 4 workers runs a call that waits for this one") as caught:
        call_tool(Composed, "endless")
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, DeadlockError):
        error = error.__cause__
    assert isinstance(error, DeadlockError)
    assert not error.may_have_run


class Cached(BaseAdapter):
    @classmethod
    def process_init(cls) -> None:
        cls.process.loads = 0

    @tool
    def use(self, name: str, limit: int = 8) -> Any:
        def loads(data: bytes) -> Any:
            self.process.loads += 1
            return pickle.loads(data)  # noqa: S301

        model = self.session_context.global_programs.cached(name, loads, limit=limit)
        return [model, self.process.loads]

    @tool
    def same(self, name: str) -> bool:
        programs = self.session_context.programs
        return programs.cached(name) is programs.cached(name)


def test_a_program_is_loaded_once_for_each_version() -> None:
    with ToolTester(Cached) as tester:
        programs = tester.context.global_programs
        programs["a"] = pickle.dumps(1)
        programs["b"] = pickle.dumps(2)
        assert [tester.call("use", name="a"), tester.call("use", name="a")] == [[1, 1], [1, 1]]
        programs["a"] = pickle.dumps(3)
        assert [tester.call("use", name="a"), tester.call("use", name="a")] == [[3, 2], [3, 2]]
        # Another worker has another cache.
        with ToolTester(Cached) as other:
            other.global_programs = tester.global_programs
            assert other.call("use", name="a") == [3, 1]
        # With room for one object, the least recently used one is dropped.
        assert tester.call("use", name="b", limit=1) == [2, 3]
        assert tester.call("use", name="b", limit=1) == [2, 3]
        assert tester.call("use", name="a", limit=1) == [3, 4]
        del programs["a"]
        with pytest.raises(ToolFailed, match="program `a` not found"):
            tester.call("use", name="a")


def test_programs_of_sessions_are_cached_too() -> None:
    with ToolTester(Cached) as tester:
        tester.context.programs["settings"] = {"rate": 0.5}
        assert tester.call("same", name="settings")


def test_the_cache_does_not_show_in_the_namespace() -> None:
    process = Process()
    process.model = 1
    process.__snakepit_cache__ = {}
    assert repr(process) == "Process(model)"
