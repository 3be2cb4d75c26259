"""Hints as converters: the values that a tool receives, the problems of invalid values, and the form of results."""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping, MutableMapping, MutableSequence, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Dict, List, Literal, Never, NewType, NoReturn, Optional, TypeVar, Union  # noqa: UP035
from uuid import UUID

import annotated_types
import pytest
from typing_extensions import TypeAliasType

from snakepit_bridge import BaseAdapter, tool
from snakepit_bridge._hints.base import MAX_PROBLEMS, HintError, InvalidError, Schemas, show, shown
from snakepit_bridge._hints.compiler import Compiler
from snakepit_bridge.errors import InvalidArgumentError
from snakepit_bridge.testing import call_tool


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mixed(enum.Enum):
    ONE = 1
    HALF = 0.5
    NOTHING = None


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


UserId = NewType("UserId", int)
Number = TypeVar("Number", bound=float)
Either = TypeVar("Either", int, str)
HERE = globals()
DAY = "2026-11-30"
KEY = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"


def read(hint: Any, value: Any) -> Any:
    return Compiler(HERE).top_level(hint).read(value)


def write(hint: Any, value: Any) -> Any:
    return Compiler(HERE).top_level(hint).write(value)


def problems(hint: Any, value: Any) -> dict[str, str]:
    with pytest.raises(InvalidError) as caught:
        read(hint, value)
    return dict(caught.value.problems)


def write_problems(hint: Any, value: Any) -> dict[str, str]:
    with pytest.raises(InvalidError) as caught:
        write(hint, value)
    return dict(caught.value.problems)


#: Hint, JSON value, the value that the tool receives, and the JSON form of that value if it differs from the first one.
ACCEPTED: list[tuple[Any, ...]] = [
    (int, 5, 5),
    (int, 5.0, 5, 5),
    (int, -0.0, 0, 0),
    (float, 5, 5.0, 5.0),
    (float, 1.5, 1.5),
    (bool, True, True),
    (str, "a", "a"),
    (None, None, None),
    (Any, [1, "a"], [1, "a"]),
    (object, None, None),
    (bytes, b"x", b"x"),
    (bytes, "eA==", b"x", b"x"),
    (bytearray, b"x", bytearray(b"x")),
    (list[bytes], ["eA=="], [b"x"], [b"x"]),
    (list, [1, "a"], [1, "a"]),
    (list[int], [1, 2.0], [1, 2], [1, 2]),
    (list[float], [1, 2.5], [1.0, 2.5], [1.0, 2.5]),
    (List[int], [1], [1]),  # noqa: UP006
    (List, [1], [1]),  # noqa: UP006
    (list[list[int]], [[1.0], []], [[1], []], [[1], []]),
    (list["Color"], ["red"], [Color.RED]),
    (Sequence[int], [1.0], [1], [1]),
    (MutableSequence[int], [1], [1]),
    (Collection[int], [1], [1]),
    (Iterable[int], [1], [1]),
    (deque[int], [1.0], deque([1]), [1]),
    (tuple, [1, "a"], (1, "a"), (1, "a")),
    (tuple[int, str], [1.0, "a"], (1, "a"), [1, "a"]),
    (tuple[int, ...], [1, 2], (1, 2), (1, 2)),
    (tuple[()], [], ()),
    (set[int], [1, 1.0], {1}, [1]),
    (frozenset[str], ["a"], frozenset({"a"})),
    (AbstractSet[int], [1], {1}),
    (dict, {"a": 1}, {"a": 1}),
    (dict[str, int], {"a": 1.0}, {"a": 1}, {"a": 1}),
    (dict[int, float], {"1": 2}, {1: 2.0}, {1: 2.0}),
    (dict[float, int], {"-1.5e+3": 2}, {-1500.0: 2}, {-1500.0: 2}),
    (dict[float, int], {"1.5": 2}, {1.5: 2}, {1.5: 2}),
    (dict[bool, int], {"true": 1}, {True: 1}, {True: 1}),
    (dict[Color, int], {"red": 1}, {Color.RED: 1}),
    (dict[Level, int], {"1": 1}, {Level.LOW: 1}, {1: 1}),
    (dict[date, int], {DAY: 1}, {date(2026, 11, 30): 1}),
    (dict[Literal["a", 1], int], {"1": 1}, {1: 1}, {1: 1}),
    (dict[int | str, int], {"1": 1, "a": 2}, {1: 1, "a": 2}, {1: 1, "a": 2}),
    (Dict[str, int], {"a": 1}, {"a": 1}),  # noqa: UP006
    (Mapping[str, float], {"a": 1}, {"a": 1.0}, {"a": 1.0}),
    (MutableMapping[str, int], {"a": 1}, {"a": 1}),
    (OrderedDict[str, int], {"a": 1}, OrderedDict(a=1)),
    (int | None, None, None),
    (int | None, 5.0, 5, 5),
    (Optional[str], "a", "a"),  # noqa: UP045
    (Union[int, str], "5", "5"),  # noqa: UP007
    (float | int, 5, 5),
    (int | float, 5.0, 5.0),
    (int | str, 5.0, 5, 5),
    (bool | int, True, True),
    (date | str, DAY, date(2026, 11, 30)),
    (date | str, "soon", "soon"),
    (str | date, DAY, DAY),
    (bytes | None, b"x", b"x"),
    (list[int] | dict[str, int], {"a": 1.0}, {"a": 1}, {"a": 1}),
    (Literal["a", "b"], "b", "b"),
    (Literal[1, "a", None], 1.0, 1, 1),
    (Literal[1, "a", None], None, None),
    (Literal[Color.RED], "red", Color.RED),
    (Color, "red", Color.RED),
    (Level, 2.0, Level.HIGH, 2),
    (Mixed, 1, Mixed.ONE),
    (Mixed, 0.5, Mixed.HALF),
    (Mixed, None, Mixed.NOTHING),
    (Access, 3, Access.READ | Access.WRITE),
    (datetime, "2026-11-30T10:00:00Z", datetime(2026, 11, 30, 10, tzinfo=UTC), "2026-11-30T10:00:00+00:00"),
    (datetime, "2026-11-30 10:00", datetime(2026, 11, 30, 10), "2026-11-30T10:00:00"),
    (date, DAY, date(2026, 11, 30)),
    (time, "10:30", time(10, 30), "10:30:00"),
    (timedelta, "P1DT2H3M4.5S", timedelta(days=1, hours=2, minutes=3, seconds=4.5)),
    (timedelta, "P2W", timedelta(weeks=2), "P14D"),
    (timedelta, "-PT1H", timedelta(hours=-1)),
    (timedelta, "PT0S", timedelta()),
    (Decimal, "1.10", Decimal("1.10")),
    (Decimal, 0.1, Decimal("0.1"), "0.1"),
    (Decimal, 10**30, Decimal(10**30), str(10**30)),
    (UUID, KEY, UUID(KEY)),
    (Path, "/a/b", Path("/a/b")),
    (PurePosixPath, "a", PurePosixPath("a")),
    (UserId, 5.0, 5, 5),
    (Number, 5, 5.0, 5.0),
    (Either, "a", "a"),
    ("list[Color]", ["blue"], [Color.BLUE]),
    (Annotated[int, "the number"], 5.0, 5, 5),
]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: f"{case[0]}-{case[1]}")
def test_values_are_converted_in_both_directions(case: tuple[Any, ...]) -> None:
    hint, json, value, *written = case
    got = read(hint, json)
    assert got == value
    assert type(got) is type(value)
    assert write(hint, value) == (written[0] if written else json)


#: Hint, JSON value, and the problems by path.
REJECTED: list[tuple[Any, Any, dict[str, str]]] = [
    (int, "5", {"": "is a string, expected integer"}),
    (int, True, {"": "is a boolean, expected integer"}),
    (int, 5.5, {"": "is a float, expected integer"}),
    (int, 1e300, {"": "is a float, expected integer"}),
    (int, None, {"": "is a null, expected integer"}),
    (float, "x", {"": "is a string, expected float"}),
    (float, False, {"": "is a boolean, expected float"}),
    (float, 10**400, {"": "is an integer that is too large for a float; send one below 1.8e308"}),
    (bool, 1, {"": "is an integer, expected boolean"}),
    (str, 1, {"": "is an integer, expected string"}),
    (None, 0, {"": "is an integer, expected null"}),
    (bytes, "!", {"": "is not base64 text"}),
    (list[bytes], [1], {"[0]": "is an integer, expected bytes, or base64 text"}),
    (list[int], "x", {"": "is a string, expected list"}),
    (list[int], [1, "a", None], {"[1]": "is a string, expected integer", "[2]": "is a null, expected integer"}),
    (list[list[int]], [[1], ["a"]], {"[1][0]": "is a string, expected integer"}),
    (tuple[int, str], [1], {"": "has 1 item, expected 2"}),
    (tuple[int, str], ["a", "b"], {"[0]": "is a string, expected integer"}),
    (set[list[int]], [[1]], {"": "cannot be converted to a `set`: unhashable type: 'list'"}),
    (dict[str, int], [1], {"": "is a list, expected map"}),
    (dict[str, int], {"a b": "x"}, {'["a b"]': "is a string, expected integer"}),
    (dict[int, int], {"x": 1}, {" key 'x'": "is 'x', expected an integer"}),
    (dict[int, int], {"0": 1, "-0": 2}, {" key '-0'": "is '-0', which another key equals"}),
    (
        dict[int, int],
        dict.fromkeys([" 5", "5_0", "05", "+5", "\u0665", "9" * 5000], 0),
        {
            **{f" key '{key}'": f"is '{key}', expected an integer" for key in [" 5", "5_0", "05", "+5", "\u0665"]},
            f" key {show('9' * 5000)}": f"is {show('9' * 5000)}, expected an integer",
        },
    ),
    (
        dict[float, int],
        dict.fromkeys(["nan", "inf", "1_0.5", ".5", "5.", "1e5 "], 0),
        {f" key '{key}'": f"is '{key}', expected a number" for key in ["nan", "inf", "1_0.5", ".5", "5.", "1e5 "]},
    ),
    (dict[Color, int], {"green": 1}, {" key 'green'": "is 'green', expected 'red' or 'blue'"}),
    (int | None, "x", {"": "is a string, expected integer or null"}),
    (int | str | None, [], {"": "is a list, expected integer, string or null"}),
    (list[int] | None, ["a"], {"[0]": "is a string, expected integer"}),
    (date | None, "x", {"": "is 'x', expected a date such as 2026-11-30"}),
    (Literal["a", "b"], "z", {"": "is 'z', expected 'a' or 'b'"}),
    (Literal["a"], ["a"], {"": "is a list, expected 'a'"}),
    (Literal[1], True, {"": "is True, expected 1"}),
    (Color, "green", {"": "is 'green', expected 'red' or 'blue'"}),
    (Level, 3, {"": "is 3, expected 1 or 2"}),
    (Access, "1", {"": "is a string, expected flags of `Access`"}),
    (datetime, "x", {"": "is 'x', expected a date and time such as 2026-11-30T12:30:00Z"}),
    (datetime, 5, {"": "is an integer, expected a date and time such as 2026-11-30T12:30:00Z"}),
    (date, "2026-11-30T10:00", {"": "is '2026-11-30T10:00', expected a date such as 2026-11-30"}),
    (time, "25:00", {"": "is '25:00', expected a time such as 12:30:00"}),
    (timedelta, 5, {"": "is an integer, expected a duration such as P1DT2H30M"}),
    (timedelta, "P99999999999D", {"": "is 'P99999999999D', which is too long for a timedelta"}),
    (Decimal, "x", {"": "is 'x', expected a number, or a decimal number as text"}),
    (Decimal, True, {"": "is a boolean, expected a number, or a decimal number as text"}),
    (UUID, "x", {"": "is 'x', expected a UUID"}),
    (Path, 1, {"": "is an integer, expected a path"}),
]


@pytest.mark.parametrize("case", REJECTED, ids=lambda case: f"{case[0]}-{case[1]}")
def test_wrong_values_are_named_by_path_and_problem(case: tuple[Any, Any, dict[str, str]]) -> None:
    hint, json, expected = case
    assert problems(hint, json) == expected


@pytest.mark.parametrize(
    "text", ["", "P", "PT", "1D", "P1", "P1H", "PT1D", "P1D2W", "PT1S1S", "P1Y", "P1M", "P-1D", "--P1D", "P²D"]
)
def test_invalid_durations_are_rejected(text: str) -> None:
    assert problems(timedelta, text) == {"": f"is {text!r}, expected a duration such as P1DT2H30M"}


def test_durations_of_any_length_survive() -> None:
    for duration in [timedelta.max, timedelta.min, timedelta(microseconds=1), timedelta(days=-1, microseconds=10)]:
        assert read(timedelta, write(timedelta, duration)) == duration


#: Hint, a result that contradicts it, and the problems by path.
WRONG_RESULTS: list[tuple[Any, Any, dict[str, str]]] = [
    (int, "5", {"": "is a string, expected integer"}),
    (int, True, {"": "is a boolean, expected integer"}),
    (float, Decimal(1), {"": "is a `decimal.Decimal`, expected float"}),
    (str, b"x", {"": "is a bytes, expected string"}),
    (None, 1, {"": "is an integer, expected null"}),
    (bytes, "x", {"": "is a string, expected bytes"}),
    (list[int], {1}, {"": "is a `set`, expected list"}),
    (list[int], [1, "a"], {"[1]": "is a string, expected integer"}),
    (set[int], [1], {"": "is a list, expected list"}),
    (
        dict[str, int],
        {"a": "x", 1: 2},
        {'["a"]': "is a string, expected integer", " key 1": "is an integer, expected string"},
    ),
    (Sequence[str], "text", {"": "is a string, expected list"}),
    (Color, "red", {"": "is 'red', expected a member of `Color`"}),
    (Literal["a"], "b", {"": "is 'b', expected 'a'"}),
    (date, datetime(2026, 1, 1), {"": "is a `datetime.datetime`, expected a date such as 2026-11-30"}),
    (datetime, DAY, {"": "is a string, expected a date and time such as 2026-11-30T12:30:00Z"}),
    (int | None, "a", {"": "is a string, expected integer or null"}),
]


@pytest.mark.parametrize("case", WRONG_RESULTS, ids=lambda case: f"{case[0]}-{case[1]}")
def test_results_that_contradict_their_hint(case: tuple[Any, Any, dict[str, str]]) -> None:
    hint, value, expected = case
    assert write_problems(hint, value) == expected


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (list[int], (1, 2), [1, 2]),
        (tuple[int, str], [1, "a"], [1, "a"]),
        (Sequence[int], range(2), [0, 1]),
        (Iterable[int], {1: "a"}.keys(), [1]),
        (set[int], frozenset({1}), [1]),
        (set[str], {"b", "c", "a"}, ["a", "b", "c"]),
        (set[int | str], {"b", 1, "a", 2}, ["a", "b", 1, 2]),
        (Mapping[str, int], OrderedDict(a=1), {"a": 1}),
        (float, 5, 5.0),
        (int, 5.0, 5),
        (list[bytes], [bytearray(b"x")], [bytearray(b"x")]),
    ],
)
def test_results_of_related_types_are_valid(hint: Any, value: Any, expected: Any) -> None:
    written = write(hint, value)
    assert (list(written) if isinstance(expected, list) else written) == expected


def test_an_alias_may_contain_itself() -> None:
    Json = TypeAliasType("Json", "int | list[Json]")  # type: ignore[misc]  # noqa: N806
    hint = Compiler({"Json": Json}).top_level(Json)
    assert hint.read([1, [2.0]]) == [1, [2]]
    assert hint.write([1, [2]]) == [1, [2]]
    with pytest.raises(InvalidError) as caught:
        hint.read([1, [2, "x"]])
    assert caught.value.problems == [("[1][1]", "is a string, expected integer or list")]
    schemas = Schemas(is_result=False)
    items = {"type": "array", "items": {"$ref": "#/$defs/Json"}}
    assert schemas.complete(hint.schema(schemas)) == {
        "anyOf": [{"type": "integer"}, items],
        "$defs": {"Json": {"anyOf": [{"type": "integer"}, items]}},
    }


def test_an_alias_may_have_parameters() -> None:
    Item = TypeVar("Item")
    Pairs = TypeAliasType("Pairs", dict[str, Item] | list[tuple[str, Item]], type_params=(Item,))  # noqa: N806
    hint = Compiler(HERE).top_level(Pairs[int])
    assert hint.read({"a": 1.0}) == {"a": 1}
    assert hint.read([["a", 1.0]]) == [("a", 1)]
    with pytest.raises(InvalidError) as caught:
        hint.read({"a": "x"})
    assert caught.value.problems == [('["a"]', "is a string, expected integer")]


def test_an_error_reports_a_bounded_number_of_problems() -> None:
    found = problems(list[int], ["a"] * 1000)
    assert list(found) == [f"[{index}]" for index in range(MAX_PROBLEMS + 1)]
    assert shown(list(found.items())) == [
        *list(found.items())[: MAX_PROBLEMS - 1],
        (f"[{MAX_PROBLEMS - 1}]", "is a string, expected integer, and more are wrong"),
    ]
    found = problems(list[int], ["a"] * MAX_PROBLEMS)
    assert shown(list(found.items())) == list(found.items())


def test_long_values_are_cut_in_messages() -> None:
    (problem,) = problems(Literal["a"], "b" * 10_000).values()
    assert len(problem) < 120


def test_a_list_of_the_right_type_is_not_copied() -> None:
    numbers = [1, 2, 3]
    assert read(list[int], numbers) is numbers
    entries = {"a": 1.5}
    assert read(dict[str, float], entries) is entries


#: Hint, valid values, and invalid ones with their problem.
CONSTRAINTS: list[tuple[Any, list[Any], dict[Any, str]]] = [
    (Annotated[int, annotated_types.Ge(0)], [0, 5], {-1: "is -1, below minimum 0"}),
    (Annotated[int, annotated_types.Gt(0)], [1], {0: "is 0, expected more than 0"}),
    (Annotated[float, annotated_types.Le(1)], [1, 0.5], {1.5: "is 1.5, above maximum 1"}),
    (Annotated[float, annotated_types.Lt(1)], [0], {1: "is 1.0, expected less than 1"}),
    (Annotated[int, annotated_types.Interval(ge=0, lt=3)], [0, 2], {3: "is 3, expected less than 3"}),
    (Annotated[int, annotated_types.MultipleOf(5)], [10], {7: "is 7, expected a multiple of 5"}),
    (
        Annotated[float, annotated_types.MultipleOf(0.1)],
        [0.3, 1],
        {
            0.35: "is 0.35, expected a multiple of 0.1",
            1e308: "cannot be checked: cannot convert float infinity to integer",
        },
    ),
    (Annotated[int | None, annotated_types.Ge(0)], [None, 1], {-1: "is -1, below minimum 0"}),
    (
        Annotated[str, annotated_types.Len(2, 3)],
        ["ab"],
        {"a": "has 1 character, expected at least 2", "abcd": "has 4 characters, expected at most 3"},
    ),
    (Annotated[str, annotated_types.Predicate(str.islower)], ["a"], {"A": "is 'A', which `islower` rejects"}),
    (
        Annotated[date, annotated_types.Ge(date(2026, 1, 1))],
        [DAY],
        {"2025-01-01": "is datetime.date(2025, 1, 1), below minimum 2026-01-01"},
    ),
]


@pytest.mark.parametrize("case", CONSTRAINTS, ids=lambda case: str(case[0]))
def test_constraints(case: tuple[Any, list[Any], dict[Any, str]]) -> None:
    hint, valid, invalid = case
    for value in valid:
        read(hint, value)
    for value, problem in invalid.items():
        assert problems(hint, value) == {"": problem}


def test_constraints_apply_inside_of_values_and_to_results() -> None:
    positive = Annotated[int, annotated_types.Gt(0)]
    hint = Annotated[list[positive], annotated_types.MinLen(1)]
    assert problems(hint, []) == {"": "has 0 items, expected at least 1"}
    assert problems(hint, [0, 1, -1]) == {"[0]": "is 0, expected more than 0", "[2]": "is -1, expected more than 0"}
    assert write_problems(hint, [0]) == {"[0]": "is 0, expected more than 0"}
    assert problems(dict[Annotated[str, annotated_types.MaxLen(1)], int], {"ab": 1}) == {
        " key 'ab'": "has 2 characters, expected at most 1"
    }


@pytest.mark.parametrize(
    ("hint", "needle"),
    [
        (complex, "is `complex`, which has no JSON form"),
        (list[type[int]], "is `type[int]`, which has no JSON form"),
        ("Missing", "is `Missing`, which cannot be evaluated: name 'Missing' is not defined"),
        ("list['Missing']", "is `Missing`, which cannot be evaluated"),
        ([1], "is `[1]`, which is a value; use a type, or `Literal[..]` for a choice of values"),
        (5, "is `5`, which is a value; use a type"),
        (Annotated[str, annotated_types.Ge(3)], "whose constraint `ge` does not apply to its values"),
        (Annotated[int, annotated_types.MinLen(3)], "whose constraint `min_length` does not apply to its values"),
        (enum.Enum("Odd", {"A": object()}), "is the enum `Odd`, whose member `A` has no JSON form"),
        (enum.IntFlag, "is the enum `IntFlag`, which has no members"),
        (enum.Flag, "is the enum `Flag`, which has no members"),
        (enum.StrEnum, "is the enum `StrEnum`, which has no members"),
        (Never, "which no value has"),
        (list[NoReturn], "which no value has"),
        (Literal[b"a"], "has the choice b'a', which has no JSON form"),
    ],
)
def test_hints_that_are_not_supported(hint: Any, needle: str) -> None:
    with pytest.raises(HintError) as caught:
        Compiler(HERE).top_level(hint)
    assert needle in str(caught.value)


class OrderTools(BaseAdapter):
    @tool
    def order(self, item: Literal["tea", "milk"], count: int, due: date, note: str = "") -> str:
        return f"{count} {item} {due} {note}"


def test_one_error_names_the_problems_of_all_arguments() -> None:
    assert call_tool(OrderTools, "order", item="tea", count=2.0, due="2026-01-02") == "2 tea 2026-01-02 "
    with pytest.raises(InvalidArgumentError) as caught:
        call_tool(OrderTools, "order", item="rum", count="x", note=5, extra=1)
    fields = [field for field, _ in caught.value.violations]
    assert fields == ["item", "count", "due", "note", "extra"]
    assert "is 'rum', expected 'tea' or 'milk'" in str(caught.value)
    assert "`count` is a string, expected integer, `due` is missing, `note` is an integer, expected string" in str(
        caught.value
    )
    assert str(caught.value).endswith("due (string), note (string, optional)")


class Raising(BaseAdapter):
    @tool
    def fail(self) -> NoReturn:
        raise ValueError("always")


def test_a_tool_that_always_raises_may_say_so() -> None:
    with pytest.raises(Exception, match="always"):
        call_tool(Raising, "fail")
