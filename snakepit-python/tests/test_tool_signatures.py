"""Signatures that cannot be those of tools, with advice, and arguments that ``Unpack`` declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from types import FunctionType
from typing import Any, NotRequired, ParamSpec, TypedDict, TypeVar, Unpack

import pytest

from snakepit_bridge import BaseAdapter, InvalidArgumentError, tool
from snakepit_bridge._plan import AdapterError
from snakepit_bridge.testing import call_tool
from test_specs import plan, spec

P = ParamSpec("P")
R = TypeVar("R")


def test_a_start_names_the_problems_of_all_tools() -> None:
    class Broken(BaseAdapter):
        @tool
        def first(self, a: complex, b: NotThere, c: int) -> type[int]:  # type: ignore[name-defined]  # noqa: F821
            return int

        @tool
        def fine(self, a: int) -> int:
            return a

        @tool
        def second(self, *numbers: int, d: Opaque, **others: complex) -> None: ...

        @tool(name="fine")
        def third(self) -> None: ...

    with pytest.raises(AdapterError) as caught:
        plan(Broken)
    text = str(caught.value)
    needles = [
        "Broken` cannot be used: it has 7 problems: (1) the hint of parameter `a` of tool",
        "Broken.first` is `complex`",
        "; (2) the hint of parameter `b` of tool",
        "; (3) the hint of the result of tool",
        f"({__file__}:{vars(Broken)['first'].__code__.co_firstlineno}); (4) tool ",
        "the parameter `*numbers`",
        "; (5) the hint of parameter `d` of tool",
        "Opaque.value`, which is `complex`, which has no JSON form",
        ", and contains ",
        "Opaque.other`, which is `type[int]`",
        "; (6) the hint of parameter `**others` of tool",
        "; (7) methods `fine` and `third` are both the tool `fine`",
    ]
    at = 0
    for needle in needles:
        assert needle in text[at:]
        at = text.index(needle, at)


@dataclass
class Opaque:
    value: complex
    fine: int
    other: type[int]


def test_the_problems_of_a_start_are_bounded() -> None:
    def use(self: Any, a: complex, b: complex) -> None: ...

    broken = type("Broken", (BaseAdapter,), {f"use{number}": tool(copied(use)) for number in range(10)})
    with pytest.raises(AdapterError) as caught:
        plan(broken)
    assert "it has 20 problems: (1) " in str(caught.value)
    assert str(caught.value).endswith("; and 4 more")
    assert "(17)" not in str(caught.value)


def copied(function: Any) -> Any:
    made = FunctionType(function.__code__, function.__globals__, function.__name__)
    made.__annotations__ = dict(function.__annotations__)
    return made


def test_a_decorator_that_hides_the_signature_gets_advice() -> None:
    def typed(function: Callable[P, R]) -> Callable[P, R]:
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(*args, **kwargs)

        return wrapper

    def single(function: Callable[..., R]) -> Callable[..., R]:
        def wrapper(self: Any, *args: Any) -> R:
            return function(self, *args)

        return wrapper

    class Broken(BaseAdapter):
        @tool
        @typed
        def first(self, a: int) -> int:
            return a

        @tool
        @single
        def second(self, a: int) -> int:
            return a

        @tool
        def third(self, *args: int) -> None: ...

    with pytest.raises(AdapterError) as caught:
        plan(Broken)
    text = str(caught.value)
    assert "the hint of parameter `**kwargs` of tool `first` is `P.kwargs`, which stands for the parameters" in text
    assert "which a decorator hides; use `functools.wraps` in the decorator" in text
    advice = "If a decorator hides the signature of the tool, use `functools.wraps`"
    assert "tool `second` has the parameter `*args`, but arguments come by name" in text
    assert f"take a list instead: `args: list`. {advice}" in text
    assert text.count(advice) == 1


class Options(TypedDict):
    count: int
    note: NotRequired[str]
    due: NotRequired[date]


def test_an_unpacked_typed_dict_declares_arguments() -> None:
    class Unpacked(BaseAdapter):
        @tool
        def order(self, item: str, **options: Unpack[Options]) -> list[str]:
            """Order.

            Args:
                item: The item.
                count: How many.
            """
            return [item, *(f"{name}={value!r}" for name, value in options.items())]

        @tool
        def plain(self, **options: Unpack[Plain]) -> dict[str, Any]:
            return dict(options)

    order = spec(Unpacked, "order")
    assert order["closed"]
    assert "others_schema" not in order
    assert [(p["name"], p["type"], p["required"], p["description"]) for p in order["parameters"]] == [
        ("item", "string", True, "The item."),
        ("count", "integer", True, "How many."),
        ("note", "string", False, ""),
        ("due", "string", False, ""),
    ]
    assert all(p.get("default", ...) is (None if p["required"] else ...) for p in order["parameters"])
    assert call_tool(Unpacked, "order", item="tea", count=2.0, due="2026-11-30") == [
        "tea",
        "count=2",
        "due=datetime.date(2026, 11, 30)",
    ]
    assert call_tool(Unpacked, "plain", a=2.0) == {"a": 2}
    for name, arguments, problem in (
        (
            "order",
            {"item": "a", "note": None},
            "`count` of tool `order` is missing, and `note` is a null, expected string",
        ),
        ("order", {"item": "a", "count": 1, "cuont": 1}, "`cuont` of tool `order` is unknown"),
        ("plain", {"a": None}, "`a` of tool `plain` is a null, expected integer"),
        ("plain", {"b": 1}, "`b` of tool `plain` is unknown"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            call_tool(Unpacked, name, arguments)
        assert problem in str(caught.value)


class Plain(TypedDict, total=False):
    a: int


def test_only_typed_dicts_can_be_unpacked() -> None:
    class Broken(BaseAdapter):
        @tool
        def order(self, **options: Unpack[dict[str, int]]) -> None: ...  # type: ignore[misc]

    with pytest.raises(AdapterError, match=r"`\*\*options` of .* only a `TypedDict` can be unpacked here"):
        plan(Broken)
