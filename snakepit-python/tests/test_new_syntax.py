"""Aliases and classes with the syntax of Python 3.12."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from snakepit_bridge._event_loop import EventLoop
from snakepit_bridge._plan import AdapterError, plan_of
from snakepit_bridge.testing import call_tool, stream_tool

NEW_SYNTAX = """
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self
from snakepit_bridge import BaseAdapter, tool

type Json = dict[str, Json] | list[Json] | int | None
type Same[T] = T
type Maybe[T] = T | None
type Nested[T] = T | list[Nested[T]]
type Ints = Iterator[int]
type Missing = NotThere

@dataclass
class Box[T]:
    value: T
    next: Self | None = None

@dataclass
class Many[*Ts]:
    values: tuple[*Ts]

class Modern(BaseAdapter):
    @tool
    def json(self, value: Json) -> Json: return value
    @tool
    def same(self, value: Same[int]) -> Maybe[int]: return value
    @tool
    def nested(self, value: Nested[int]) -> Nested[int]: return value
    @tool
    def box(self, value: Box[int]) -> Box[int]: return value
    @tool
    def many(self, value: Many[int, float]) -> Many[int, float]: return value
    @tool
    def bound[T: float](self, value: T, others: "list[T]") -> T: return value
    @tool
    def ints(self) -> Ints: yield 1.0

class Broken(BaseAdapter):
    @tool
    def missing(self, value: Missing) -> None: ...
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is that of Python 3.12")
@pytest.mark.parametrize("first", ["", "from __future__ import annotations"], ids=["evaluated", "strings"])
def test_aliases_and_classes_with_parameters_of_the_new_syntax(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("modern")
    # Annotations that are strings are evaluated in the module of their class.
    monkeypatch.setitem(sys.modules, "modern", module)
    exec(compile(first + NEW_SYNTAX, "modern.py", "exec", dont_inherit=True), vars(module))  # noqa: S102
    modern = module.Modern
    for name, value, expected in (
        ("json", {"a": [1.0, None]}, {"a": [1, None]}),
        ("same", 1.0, 1),
        ("nested", [1.0, [2.0]], [1, [2]]),
        ("box", {"value": 1.0, "next": {"value": 2.0}}, {"value": 1, "next": {"value": 2, "next": None}}),
        ("many", {"values": [1.0, 2]}, {"values": [1, 2.0]}),
    ):
        got = call_tool(modern, name, value=value)
        assert (got, repr(got)) == (expected, repr(expected))
    assert repr(call_tool(modern, "bound", value=1, others=[2])) == "1.0"
    assert stream_tool(modern, "ints") == [1]
    with pytest.raises(
        AdapterError, match=r"parameter `value` of .* is `Missing`, which cannot be evaluated: name 'NotThere'"
    ):
        plan_of(module.Broken, EventLoop())
