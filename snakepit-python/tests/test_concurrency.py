"""The numbers of calls that a worker runs together, and interruptions of threads."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any

import pytest

from snakepit_bridge import BaseAdapter, CallCancelled, _native, tool
from snakepit_bridge._event_loop import EventLoop
from snakepit_bridge._function_adapter import adapter_of_module
from snakepit_bridge._plan import AdapterError, Plan, plan_of
from snakepit_bridge._signatures import is_plain_function


class Plain(BaseAdapter):
    @tool
    def add(self, a: int, b: int) -> int:
        return a + b


class Mixed(BaseAdapter):
    concurrency = 10
    threads = 3

    @tool(concurrency=20)
    async def wide(self) -> None: ...

    @tool
    async def shared(self) -> AsyncIterator[int]:
        yield 1

    @tool(concurrency=2)
    def plain(self) -> None: ...


def numbers(plan: Plan) -> tuple[int, int, int]:
    return plan.calls, plan.concurrency, plan.threads


def test_the_largest_number_is_that_of_the_worker() -> None:
    assert numbers(plan_of(Plain, EventLoop())) == (1, 1, 0)
    plan = plan_of(Mixed, EventLoop())
    assert numbers(plan) == (20, 10, 3)
    own = {tool.spec["name"]: (tool.concurrency, tool.is_plain) for tool in plan.tools}
    assert own == {"wide": (20, False), "shared": (None, False), "plain": (2, True)}
    assert not plan.are_dynamic_plain


def test_settings_of_the_host_replace_those_of_the_adapter() -> None:
    assert numbers(plan_of(Mixed, EventLoop(), concurrency=5, threads=0)) == (5, 5, 0)
    assert numbers(plan_of(Mixed, EventLoop(), concurrency=2)) == (2, 2, 2)
    assert numbers(plan_of(Mixed, EventLoop(), concurrency=1)) == (1, 1, 0)
    assert numbers(plan_of(Mixed, EventLoop(), concurrency=1, threads=4)) == (1, 1, 0)
    assert numbers(plan_of(Plain, EventLoop(), concurrency=7)) == (7, 7, 0)
    assert numbers(plan_of(Plain, EventLoop(), threads=4)) == (4, 1, 4)


@pytest.mark.parametrize("value", [0, 257, -1, True, 1.5, "2"])
def test_numbers_out_of_range_are_rejected(value: Any) -> None:
    with pytest.raises(ValueError, match=r"concurrency is .*; it takes an integer from 1 to 256"):
        tool(concurrency=value)
    adapter = type("Bad", (Plain,), {"concurrency": value})
    with pytest.raises(AdapterError, match=r"`Bad` cannot be used: `concurrency` is .*from 1 to 256"):
        plan_of(adapter, EventLoop())


def module(**members: Any) -> ModuleType:
    made = ModuleType("numbered")

    async def fetch() -> None: ...

    fetch.__module__ = made.__name__
    vars(made).update(fetch=fetch, **members)
    return made


def test_a_module_sets_the_numbers_of_its_functions() -> None:
    adapter = adapter_of_module(module(concurrency=12, threads=3))
    assert numbers(plan_of(adapter, EventLoop())) == (12, 12, 3)
    assert numbers(plan_of(adapter, EventLoop(), concurrency=4, threads=0)) == (4, 4, 0)
    # Variables of another kind are unrelated.
    adapter = adapter_of_module(module(concurrency=asyncio, threads=list[Any]()))
    assert numbers(plan_of(adapter, EventLoop())) == (1, 1, 0)
    with pytest.raises(AdapterError, match=r"`numbered` cannot be used: `concurrency` is '8'; it takes an integer"):
        plan_of(adapter_of_module(module(concurrency="8")), EventLoop())


def test_a_plain_function_needs_threads_to_overlap() -> None:
    class Blocking(BaseAdapter):
        @tool(concurrency=2)
        def work(self) -> None: ...

    with pytest.raises(AdapterError, match="tool `work` sets concurrency=2, but it is a synchronous function"):
        plan_of(Blocking, EventLoop())
    assert numbers(plan_of(Blocking, EventLoop(), threads=4)) == (4, 1, 4)


def test_a_tool_may_have_the_name_of_a_setting() -> None:
    class Named(BaseAdapter):
        @tool
        def threads(self) -> int:  # type: ignore[override]
            return 1

    assert numbers(plan_of(Named, EventLoop())) == (1, 1, 0)


def test_functions_are_plain_unless_they_are_coroutines_or_async_generators() -> None:
    async def coroutine() -> None: ...

    async def items() -> AsyncIterator[int]:
        yield 1

    @functools.wraps(coroutine)
    def wrapper() -> Any:
        return coroutine()

    class Called:
        async def __call__(self) -> None: ...

    others: list[Callable[..., Any]] = [coroutine, items, wrapper, functools.partial(coroutine), Called()]
    assert not any(is_plain_function(function) for function in others)
    plain: list[Callable[..., Any]] = [len, lambda: 1, functools.partial(print), Called]
    assert all(is_plain_function(function) for function in plain)


def in_thread(body: Callable[[], Any]) -> tuple[_native.ThreadCall, threading.Thread, list[Any]]:
    call, outcome = _native.ThreadCall(), list[Any]()

    def run() -> None:
        try:
            outcome.append(call.run(threading.get_ident(), body))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return call, thread, outcome


def test_an_exception_is_raised_in_the_function_of_a_thread() -> None:
    started = threading.Event()

    def spin() -> None:
        started.set()
        while True:
            time.sleep(0.001)

    call, thread, outcome = in_thread(spin)
    assert started.wait(10)
    assert call.thread == thread.ident
    assert call.interrupt(CallCancelled)
    thread.join(10)
    assert isinstance(outcome[0], CallCancelled)
    assert call.thread is None
    assert not call.interrupt(CallCancelled)


def test_an_exception_that_comes_too_late_does_not_reach_the_next_function() -> None:
    call = _native.ThreadCall()
    # No Python code follows in the function, so the exception is pending when it returns.
    assert call.run(threading.get_ident(), functools.partial(call.interrupt, CallCancelled))
    for _ in range(100):
        time.sleep(0)


#: Runs a function on a thread with and without an exception that is pending at its end, and then traced code.
TRACED = """
import functools, sys, threading
from snakepit_bridge import CallCancelled, _native
call = _native.ThreadCall()
assert call.run(threading.get_ident(), lambda: 5) == 5
assert call.run(threading.get_ident(), functools.partial(call.interrupt, CallCancelled))
def function(): return 1
sys.settrace(lambda frame, event, argument: None)
print(function())
"""


def test_traced_code_continues_after_a_call_on_a_thread() -> None:
    # CPython 3.11 would run the first instruction of the function for ever.
    command = [sys.executable, "-c", TRACED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    assert done.stdout == "1\n"
