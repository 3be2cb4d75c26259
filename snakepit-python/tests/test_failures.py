"""The parts of exceptions that callers receive: the names of types, as in Python's traceback, and details."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from snakepit_bridge._failures import describe, details
from snakepit_bridge.errors import HostToolError, ToolError, ToolFailed


class Shelf:
    class EmptyError(Exception):
        pass


class MainModuleError(Exception):
    __module__ = "__main__"


class UnknownModuleError(Exception):
    pass


UnknownModuleError.__module__ = 7  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [ValueError, Shelf.EmptyError, MainModuleError, UnknownModuleError, BrokenPipeError])
def test_type_names_match_the_traceback(kind: type[Exception]) -> None:
    error = kind("why")
    last = traceback.format_exception_only(kind, error)[-1].strip()
    name, message, _ = describe(error)
    assert f"{name}: {message}" == last


def test_the_name_of_a_nested_class_includes_its_module_and_outer_classes() -> None:
    assert describe(Shelf.EmptyError("why"))[0] == f"{__name__}.Shelf.EmptyError"


class OutOfStockError(Exception):
    __snakepit_attributes__: tuple[str, ...] | str = ("item", "left", "missing", "handle")

    def __init__(self, item: str, left: int) -> None:
        super().__init__(item, left, object())
        self.item = item
        self.left = left
        self.handle = object()
        self.hidden = "not published"


class RareError(OutOfStockError):
    __snakepit_attributes__ = "shelf"

    def __init__(self) -> None:
        super().__init__("tea", 3)
        self.shelf = {"row": 1}


class HostileError(Exception):
    __snakepit_attributes__ = ("trap", "fine")
    fine = 1

    @property
    def trap(self) -> int:
        raise RuntimeError


def parts_of(error: BaseException) -> Any:
    code, parts = details(error)
    return code, json.loads(parts or b"{}")


def test_details_have_the_code_and_data_of_a_tool_error() -> None:
    assert parts_of(ToolError("no", code="not_found", data={"left": 3})) == (
        "not_found",
        {"data": {"left": 3}, "args": ["no"]},
    )
    host = HostToolError("no", "find", code="c", data=[1])
    assert parts_of(host) == ("c", {"data": [1], "args": ["no"]})
    error = ValueError("no")
    error.code = "not_sent"  # type: ignore[attr-defined]
    assert parts_of(error) == ("", {"args": ["no"]})
    assert details(KeyError()) == ("", b"")


def test_classes_publish_attributes_and_values_without_a_json_form_are_left_out() -> None:
    assert parts_of(RareError()) == (
        "",
        {"args": ["tea", 3], "attributes": {"item": "tea", "left": 3, "shelf": {"row": 1}}},
    )
    assert parts_of(HostileError("x")) == ("", {"args": ["x"], "attributes": {"fine": 1}})
    recursive: list[Any] = []
    recursive.append(recursive)
    for value in (object(), {1, 2}, float("nan"), float("inf"), "\ud800", b"x", recursive):
        assert parts_of(ToolError("no", data=value)) == ("", {"args": ["no"]})


class CountedList(list[int]):
    """Counts the items that an encoder reads."""

    reads = 0

    def __iter__(self) -> Iterator[int]:
        for item in super().__iter__():
            self.reads += 1
            yield item


def test_a_large_part_is_omitted_without_encoding_all_of_it() -> None:
    huge = CountedList(range(1_000_000))
    assert parts_of(ValueError("no", huge)) == ("", {"omitted": ["args"]})
    assert 0 < huge.reads < 100_000
    assert parts_of(ToolError("no", code="c", data="x" * 300_000)) == ("c", {"args": ["no"], "omitted": ["data"]})
    assert parts_of(ToolError("x" * 300_000, data={"left": 3})) == ("", {"data": {"left": 3}, "omitted": ["args"]})
    without_json = ValueError(*[object()] * 1_000_000)
    assert parts_of(without_json) == ("", {"omitted": ["args"]})
    large = RareError()
    large.shelf = {"row": list(range(100_000))}  # type: ignore[dict-item]
    assert parts_of(large) == ("", {"args": ["tea", 3], "omitted": ["attributes"]})


def test_an_error_of_another_tool_that_a_tool_passes_on_stays_that_error() -> None:
    error = ToolFailed(
        "shop.OutOfStock",
        "no tea",
        code="sold_out",
        data={"left": 0},
        exception_args=("tea",),
        attributes={"item": "tea"},
        omitted=("notes",),
    )
    assert describe(error)[:2] == ("shop.OutOfStock", "no tea")
    code, parts = details(error)
    assert code == "sold_out"
    assert json.loads(parts) == {
        "data": {"left": 0},
        "args": ["tea"],
        "attributes": {"item": "tea"},
        "omitted": ["notes"],
    }
    group = ExceptionGroup("two", [error, ValueError("x")])
    members = json.loads(details(group)[1])["exceptions"]
    assert [(member["type"], member["message"]) for member in members] == [
        ("shop.OutOfStock", "no tea"),
        ("ValueError", "x"),
    ]


def test_a_huge_group_is_described_quickly() -> None:
    shared: Exception = ValueError("leaf")
    for _ in range(40):
        shared = ExceptionGroup("pair", [shared, shared])
    for group in (ExceptionGroup("wide", [ValueError("no")] * 1_000_000), shared):
        started = time.monotonic()
        name, message, text = describe(group)
        parts = details(group)[1]
        assert time.monotonic() - started < 2
        assert name == "ExceptionGroup"
        assert text.endswith(f"ExceptionGroup: {message}\n")
        assert len(parts) < 300_000
