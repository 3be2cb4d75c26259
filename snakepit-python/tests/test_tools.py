"""Tools of every kind, run by the native executor as in a worker."""

from __future__ import annotations

import abc
import asyncio
import contextvars
import functools
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

from snakepit_bridge import BaseAdapter, InvalidArgumentError, NotFoundError, SnakepitError, StreamChunk, tool
from snakepit_bridge._plan import AdapterError
from snakepit_bridge.session_context import SessionContext
from snakepit_bridge.testing import (
    ToolFailed,
    ToolTester,
    call_tool,
    call_tool_async,
    stream_tool,
    stream_tool_async,
)


class Everything(BaseAdapter):
    """One tool of each kind, and a log of the methods that ran."""

    log: ClassVar[list[str]] = []
    ready: ClassVar[int] = 0

    @classmethod
    def process_init(cls) -> None:
        cls.ready += 1

    def initialize(self) -> None:
        self.log.append("initialize")

    def cleanup(self) -> None:
        self.log.append("cleanup")

    @tool
    def add(self, a: int, b: int = 1) -> int:
        return a + b

    @tool
    async def aadd(self, a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    @tool
    def pull(self, n: int) -> Iterator[int]:
        try:
            yield from range(n)
        finally:
            self.log.append("closed")

    @tool
    async def apull(self, n: int) -> AsyncIterator[int]:
        try:
            for number in range(n):
                await asyncio.sleep(0)
                yield number
        finally:
            self.log.append("aclosed")

    @tool
    def rich(self) -> Iterator[StreamChunk]:
        yield StreamChunk({"step": 1}, metadata={"kind": "progress", "ratio": 0.5})
        yield StreamChunk({"step": 2}, is_final=True)
        yield StreamChunk({"step": 3})

    @tool(supports_streaming=True)
    def listing(self, n: int) -> list[int]:
        return list(range(n))

    @tool
    def fail(self) -> None:
        raise ValueError("on purpose")

    @tool
    async def afail(self) -> None:
        await asyncio.sleep(0)
        raise LookupError("in a coroutine")

    @tool
    def fail_midway(self) -> Iterator[int]:
        yield 1
        raise RuntimeError("midway")

    @tool
    def odd_result(self) -> Any:
        return {"items": [1, object()]}

    @tool
    def leave(self) -> None:
        raise SystemExit(3)

    @tool
    def identity(self) -> int:
        return id(self)


@pytest.fixture(autouse=True)
def _clear_log() -> None:
    Everything.log.clear()


def test_functions_and_coroutines_return_values() -> None:
    assert call_tool(Everything, "add", a=1, b=2) == 3
    assert call_tool(Everything, "add", a=1) == 2
    assert call_tool(Everything, "aadd", a=1, b=2) == 3


@pytest.mark.parametrize("name", ["pull", "apull"])
def test_generators_return_chunks(name: str) -> None:
    assert stream_tool(Everything, name, n=1000) == list(range(1000))
    assert stream_tool(Everything, name, n=0) == []


def test_streaming_a_plain_value_returns_one_chunk() -> None:
    assert stream_tool(Everything, "listing", n=3) == [[0, 1, 2]]


def test_chunks_have_metadata_and_the_final_one_ends_the_stream() -> None:
    with ToolTester(Everything) as tester:
        chunks = tester.stream("rich")
    assert [chunk.data for chunk in chunks] == [{"step": 1}, {"step": 2}]
    assert chunks[0].metadata == {"kind": "progress", "ratio": "0.5"}


@pytest.mark.parametrize(("name", "entry"), [("pull", "closed"), ("apull", "aclosed")])
def test_a_cancelled_stream_closes_the_generator(name: str, entry: str) -> None:
    with ToolTester(Everything) as tester:
        # More than any queue holds, so the generator must be stopped before its end.
        chunks = tester.stream(name, limit=2, n=10_000_000)
        assert [chunk.data for chunk in chunks] == [0, 1]
        assert Everything.log == ["initialize", entry, "cleanup"]
        assert tester.call("add", a=1, b=1) == 2


def test_each_call_gets_a_new_object_with_initialize_and_cleanup() -> None:
    with ToolTester(Everything) as tester:
        tester.call("add", a=1)
        with pytest.raises(ToolFailed):
            tester.call("fail")
    assert Everything.log == ["initialize", "cleanup"] * 2


def test_process_init_runs_once_per_process() -> None:
    before = Everything.ready
    with ToolTester(Everything) as tester:
        for _ in range(3):
            tester.call("add", a=1)
    assert Everything.ready == before + 1


def test_failures_contain_type_message_and_the_traceback_of_the_tool() -> None:
    with pytest.raises(ToolFailed) as caught:
        call_tool(Everything, "fail")
    assert (caught.value.type, caught.value.message) == ("ValueError", "on purpose")
    assert "in fail" in caught.value.traceback
    with pytest.raises(ToolFailed) as caught:
        call_tool(Everything, "afail")
    assert (caught.value.type, caught.value.message) == ("LookupError", "in a coroutine")
    assert "in afail" in caught.value.traceback
    assert "_event_loop.py" not in caught.value.traceback
    assert "asyncio/base_events" not in caught.value.traceback


def test_a_stream_that_fails_midway_raises_the_error() -> None:
    with ToolTester(Everything) as tester, pytest.raises(ToolFailed, match="midway"):
        tester.stream("fail_midway")


def test_the_error_of_a_value_without_a_wire_form_names_its_path() -> None:
    with pytest.raises(ToolFailed, match=r"the result of tool `odd_result`\['items'\]\[1\] is a `object`"):
        call_tool(Everything, "odd_result")


def test_system_exit_fails_the_call_and_not_the_process() -> None:
    with pytest.raises(ToolFailed) as caught:
        call_tool(Everything, "leave")
    assert caught.value.type == "SystemExit"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, r"argument `a` of tool `add` is missing; the tool takes a \(integer\), b \(integer, optional\)"),
        ({"bb": 2}, r"argument `a` of tool `add` is missing, and `bb` is unknown \(did you mean `b`\?\); the tool"),
        ({"a": 1, "bb": 2}, r"argument `bb` of tool `add` is unknown \(did you mean `b`\?\); the tool takes a"),
        ({"a": "1"}, "argument `a` of tool `add` is a string, expected integer"),
        ({"a": 1.5}, "argument `a` of tool `add` is a float, expected integer"),
        ({"a": 1e300}, "argument `a` of tool `add` is a float, expected integer"),
        ({"a": 1, "b": None}, "argument `b` of tool `add` is a null, expected integer"),
    ],
)
def test_arguments_that_a_host_would_reject_are_rejected(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        call_tool(Everything, "add", arguments)
    with pytest.raises(InvalidArgumentError, match=problem):
        stream_tool(Everything, "add", **arguments)


def test_arguments_that_a_host_would_accept_are_accepted() -> None:
    class Lenient(BaseAdapter):
        @tool
        def half(self, of: float, digits: int | None = None) -> float:
            return of / 2 if digits is None else round(of / 2, digits)

        @tool
        def rest(self, **rest: Any) -> dict[str, Any]:
            return rest

    assert call_tool(Lenient, "half", of=3) == 1.5
    assert call_tool(Lenient, "half", of=3, digits=None) == 1.5
    assert call_tool(Lenient, "rest", {"session_id": "mine", "limit": 1}) == {"session_id": "mine", "limit": 1}
    with pytest.raises(InvalidArgumentError, match="`digits` of tool `half` is a float, expected integer"):
        call_tool(Lenient, "half", of=3, digits=1.5)


def test_call_tool_and_stream_tool_accept_a_session_and_host_tools() -> None:
    class Asking(BaseAdapter):
        @tool
        def ask(self, item: str) -> list[str]:
            context = self.session_context
            return [context.session_id, context.call_host_tool("rate", item=item)]

        @tool
        def count_up(self) -> Iterator[str]:
            while True:
                yield self.session_context.call_host_tool("rate", item=self.session_context.session_id)

    def rate(item: str) -> str:
        return f"rate of {item}"

    assert call_tool(Asking, "ask", item="tea", session_id="s", host_tools={"rate": rate}) == ["s", "rate of tea"]
    endless = stream_tool(Asking, "count_up", limit=2, session_id="s", host_tools={"rate": rate})
    assert endless == ["rate of s", "rate of s"]
    with pytest.raises(ToolFailed, match="`rate` not found; pass the function in `host_tools`"):
        call_tool(Asking, "ask", item="tea")


def test_a_tool_with_a_parameter_limit_can_be_streamed_with_a_limit() -> None:
    class Listing(BaseAdapter):
        @tool
        def numbers(self, limit: int = 3) -> Iterator[int]:
            yield from range(limit)

    assert stream_tool(Listing, "numbers", {"limit": 5}, limit=4) == [0, 1, 2, 3]
    with pytest.raises(TypeError, match="`numbers` has its own parameter `limit`"):
        stream_tool(Listing, "numbers", limit=5)


def test_unknown_tools_and_unary_calls_of_generators_are_rejected() -> None:
    with pytest.raises(NotFoundError, match=r"`ghost` not found$"):
        call_tool(Everything, "ghost")
    with pytest.raises(NotFoundError, match="`ad` not found; did you mean `add`"):
        call_tool(Everything, "ad", a=1)
    with pytest.raises(SnakepitError, match="`pull` streams its results; call it with `stream_tool`"):
        call_tool(Everything, "pull", n=1)
    with pytest.raises(InvalidArgumentError, match="session"), ToolTester(Everything, session_id="x" * 10_000) as t:
        t.call("add", a=1)
    with pytest.raises(TypeError, match="is an instance of `Everything`; pass the class"):
        call_tool(Everything(), "add", a=1)  # type: ignore[arg-type]


class Dynamic:
    """An adapter without a base class and declared tools, as in the original protocol."""

    dynamic_tools = ("known",)

    def set_session_context(self, context: SessionContext) -> None:
        self.context = context

    def execute_tool(self, tool_name: str, arguments: dict[str, Any], context: SessionContext) -> dict[str, Any]:
        assert context is self.context
        return {"tool": tool_name, "arguments": arguments, "session": context.session_id}


def test_adapters_may_serve_undeclared_tools() -> None:
    with ToolTester(Dynamic, session_id="s") as tester:
        for name in ["known", "anything"]:
            assert tester.call(name, x=1) == {"tool": name, "arguments": {"x": 1}, "session": "s"}


class Typed(BaseAdapter):
    @tool
    def types(
        self, f: float = 0.0, i: int = 0, x: np.ndarray | None = None, anything: Any = None, o: float | None = None
    ) -> list[str]:
        return [type(value).__name__ for value in (f, i, x, anything, o)]

    @tool
    def twice(self, x: np.ndarray) -> Any:
        return x * 2


def test_arguments_have_the_types_of_their_parameters() -> None:
    assert call_tool(Typed, "types", f=5, i=5.0, x=[[1, 2], [3, 4]], anything=[1], o=3) == [
        "float",
        "int",
        "ndarray",
        "list",
        "float",
    ]
    assert call_tool(Typed, "types", i=True - 1) == ["float", "int", "NoneType", "NoneType", "NoneType"]
    assert call_tool(Typed, "twice", x=[[1, 2], [3, 4]]).tolist() == [[2, 4], [6, 8]]
    for lists in ([[1], [2, 3]], ["a"], [[None]]):
        with pytest.raises(
            InvalidArgumentError, match=r"argument `x` of tool `twice` .*cannot be converted to an array"
        ):
            call_tool(Typed, "twice", x=lists)
    with pytest.raises(InvalidArgumentError, match="too large for a float"):
        call_tool(Typed, "types", f=10**400)


MARK: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="none")


class Marking(BaseAdapter):
    """Records the context variables in each part of a call."""

    seen: ClassVar[list[str]] = []

    def initialize(self) -> None:
        self.seen.append(MARK.get())
        MARK.set("initialize")

    async def cleanup(self) -> None:
        self.seen.append(MARK.get())

    @tool
    def plain(self) -> str:
        return MARK.get()

    @tool
    async def coroutine(self) -> str:
        found = MARK.get()
        MARK.set("coroutine")
        return found


def test_initialize_tool_and_cleanup_of_a_call_share_a_context() -> None:
    Marking.seen.clear()
    with ToolTester(Marking) as tester:
        for name in ("plain", "coroutine", "plain"):
            assert tester.call(name) == "initialize"
    assert Marking.seen == ["none", "initialize", "none", "coroutine", "none", "initialize"]
    assert MARK.get() == "none"


def test_tools_can_be_called_while_an_event_loop_runs() -> None:
    async def main() -> None:
        assert call_tool(Everything, "aadd", a=1, b=2) == 3
        assert stream_tool(Everything, "apull", n=3) == [0, 1, 2]
        ticked = asyncio.ensure_future(asyncio.sleep(0, "ticked"))
        assert await call_tool_async(Everything, "aadd", a=1, b=2) == 3
        assert ticked.done()
        assert await stream_tool_async(Everything, "apull", n=3) == [0, 1, 2]
        with ToolTester(Everything) as tester:
            both = await asyncio.gather(tester.call_async("aadd", a=1, b=2), tester.call_async("add", a=2))
            assert list(both) == [3, 3]
            assert tester.call("aadd", a=2, b=2) == 4

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("fail", ValueError), ("afail", LookupError), ("odd_result", TypeError), ("fail_midway", RuntimeError)],
)
def test_the_cause_of_a_failure_is_the_tools_exception(name: str, kind: type[Exception]) -> None:
    call = stream_tool if name == "fail_midway" else call_tool
    with pytest.raises(ToolFailed) as caught:
        call(Everything, name)
    cause = caught.value.__cause__
    assert type(cause) is kind
    if name != "odd_result":
        assert cause.__traceback__ is not None
        assert traceback.extract_tb(cause.__traceback__)[-1].name == name


def test_an_adapter_that_cannot_be_constructed_is_rejected() -> None:
    class Abstract(BaseAdapter, abc.ABC):
        @tool
        def read(self) -> None: ...

        @abc.abstractmethod
        def other(self) -> None: ...

    class Broken(BaseAdapter):
        def __init__(self) -> None:
            raise OSError("no weights")

        @tool
        def read(self) -> None: ...

    for adapter, problem in [
        (Abstract, "abstract"),
        (Broken, "OSError: no weights"),
    ]:
        with pytest.raises(AdapterError, match=f"`.*{adapter.__name__}` cannot be constructed: .*{problem}"):
            ToolTester(adapter)


def test_partials_overrides_and_other_kinds_of_methods_are_tools() -> None:
    def scale(value: float, factor: float) -> float:
        """Multiply."""
        return value * factor

    class Base(BaseAdapter):
        double = tool(functools.partial(scale, factor=2.0))

        @tool(idempotent=True)
        def greet(self, name: str) -> str:
            """Greet."""
            return f"hello {name}"

        @tool
        def removed(self) -> None: ...

        def _power(self, value: float, exponent: int) -> float:
            return float(value**exponent)

        square = tool(functools.partialmethod(_power, exponent=2))  # type: ignore[call-overload]

    class Derived(Base):
        def greet(self, name: str, loud: bool = False) -> str:
            return f"HELLO {name}" if loud else super().greet(name)

        removed = None  # type: ignore[assignment]

    with ToolTester(Derived) as tester:
        assert tester.call("double", value=4) == 8.0
        assert tester.call("double", value=4, factor=3) == 12.0
        assert tester.call("square", value=3) == 9.0
        assert tester.call("greet", name="x", loud=True) == "HELLO x"
        with pytest.raises(NotFoundError):
            tester.call("removed")
        specs = {name: tool.spec for name, tool in tester._tools.items()}
    assert [(p["name"], p["required"]) for p in specs["double"]["parameters"]] == [("value", True), ("factor", False)]
    assert specs["double"]["description"] == "Multiply."
    assert [p["name"] for p in specs["square"]["parameters"]] == ["value", "exponent"]
    assert specs["greet"]["metadata"]["snakepit.idempotent"] == "true"

    class NoMethod(Base):
        greet = 5  # type: ignore[assignment]

    with pytest.raises(AdapterError, match="`greet` overrides the tool `greet` and cannot be called"):
        ToolTester(NoMethod)

    class Rest(BaseAdapter):
        @tool
        def total(self, first: int, *more: int) -> int:
            return first + sum(more)

    with pytest.raises(AdapterError, match=r"parameter `\*more`, but arguments come by name; take a list"):
        ToolTester(Rest)


def test_an_invalid_policy_is_rejected() -> None:
    with pytest.raises(ValueError, match="after_cancel is 'never'; it takes auto, keep, replace"):
        tool(after_cancel="never")  # type: ignore[call-overload]

    class Odd(BaseAdapter):
        after_cancel = "never"  # type: ignore[assignment]

        @tool
        def f(self) -> None: ...

    with pytest.raises(AdapterError, match="after_cancel is 'never'"):
        ToolTester(Odd)


def test_metadata_keys_with_equal_text_are_rejected() -> None:
    class Twice(BaseAdapter):
        @tool
        def chunks(self) -> Iterator[StreamChunk]:
            yield StreamChunk(1, metadata={1: "a", "1": "b"})  # type: ignore[dict-item]

    with pytest.raises(ToolFailed, match="two keys that are both `1`"):
        stream_tool(Twice, "chunks")
