"""Every type in the table of docs/values.md is a hint: of arguments and results, alone and inside of other hints."""

from __future__ import annotations

import array
import dataclasses
import enum
import zoneinfo
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, UserString, defaultdict, deque
from collections.abc import Callable, ItemsView, KeysView, Reversible, ValuesView
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

import attrs
import msgspec
import numpy as np
import numpy.typing as npt
import pydantic
import pytest
from typing_extensions import Buffer

from snakepit_bridge import BaseAdapter, InvalidArgumentError, _converters, _native, converter, tool
from snakepit_bridge.testing import ToolFailed, call_tool
from test_generated_values import ROWS, types_in
from value_samples import same


class Pair(NamedTuple):
    left: int
    right: str


class Level(enum.Enum):
    RAW = b"\x00\xff"
    PAIR = (1, 2)
    DAY = date(2026, 11, 30)
    NAME = "name"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Frame:
    data: bytes


@attrs.define
class Reading:
    data: bytes


class Record(msgspec.Struct, tag=True):
    data: bytes


class Model(pydantic.BaseModel):
    data: bytes


class Money:
    def __init__(self, amount: int) -> None:
        self.amount = amount


class Name(str):
    __slots__ = ()

    def __new__(cls, value: str) -> Name:
        if not value:
            raise ValueError("a name needs letters")
        return super().__new__(cls, value)


class Count(int):
    pass


class Names(list[str]):
    pass


class Sizes(dict[str, int]):
    pass


class Queue(deque[int]):
    pass


class Words(Names):
    pass


class Moment(datetime):
    pass


converter(Money, encode=lambda value: value.amount, decode=Money)

#: Hint and value, by the first cell of a row of the table.
SAMPLES: dict[str, list[tuple[Any, Any]]] = {
    "`None`, `bool`, `str`": [
        (None, None),
        (bool, True),
        (str, "a"),
        (Name, Name("a")),
        (UserString, UserString("a")),
    ],
    "`int` of any size": [(int, 2**80), (Count, Count(5))],
    "`float`": [(float, float("nan")), (float, float("-inf"))],
    "`list`, `tuple`, `NamedTuple`, `deque`, `range`, views of a `dict`": [
        (list[int], [1]),
        (tuple[int, str], (1, "a")),
        (tuple[int, ...], (1, 2)),
        (Pair, Pair(1, "a")),
        (deque[int], deque([1])),
        (range, range(2, 8, 2)),
        (range, range(3, 0, -1)),
        (range, range(0)),
        (KeysView[str], {"a": 1}.keys()),
        (type({}.keys()), {"a": 1}.keys()),
        (ValuesView[int], {"a": 1}.values()),
        (ItemsView[str, int], {"a": 1}.items()),
        (Reversible[int], [1, 2]),
        (UserList[int], UserList([1])),
        (Names, Names(["a"])),
        (Words, Words(["a"])),
        (Queue, Queue([1])),
    ],
    "`set`, `frozenset`": [(set[int], {1, 2}), (frozenset[str], frozenset({"a"}))],
    "`dict` and similar maps": [
        (dict[str, int], {"a": 1}),
        (OrderedDict[str, int], OrderedDict(a=1)),
        (UserDict[str, int], UserDict(a=1)),
        (ChainMap[str, int], ChainMap({"a": 1})),
        (MappingProxyType[str, int], MappingProxyType({"a": 1})),
        (defaultdict[str, list[int]], defaultdict(list, a=[1])),
        (Counter[str], Counter("aab")),
        (Sizes, Sizes(a=1)),
    ],
    "`bytes`, `bytearray`, `memoryview`, objects that export a buffer": [
        (bytes, b"a"),
        (bytearray, bytearray(b"a")),
        (memoryview, memoryview(b"a")),
        (Buffer, b"a"),
    ],
    "numpy array of booleans or numbers, including `float16` and complex": [
        (np.ndarray, np.zeros((2, 3), np.float16)),
        (npt.NDArray[np.complex64], np.zeros(2, np.complex64)),
        (npt.NDArray[np.bool_], np.array([True])),
    ],
    "numpy array of strings or objects": [
        (npt.NDArray[np.str_], np.array([["a", "bc"]])),
        (npt.NDArray[np.object_], np.array(["a", None, 1], object)),
    ],
    "numpy number": [
        (np.int8, np.int8(1)),
        (np.float32, np.float32(0.5)),
        (np.bool_, np.True_),
        (np.str_, np.str_("a")),
    ],
    "`datetime`, `date`, `time`": [
        (datetime, datetime(2026, 11, 30, 10)),
        (Moment, Moment(2026, 11, 30, 10)),
        (date, date(2026, 11, 30)),
        (time, time(10, 30)),
    ],
    "`timedelta`": [(timedelta, timedelta(days=1, microseconds=5))],
    "`Decimal`, `Fraction`, `UUID`, `Path`, `IPv4Address`": [
        (Decimal, Decimal("1.10")),
        (Fraction, Fraction(1, 3)),
        (UUID, UUID(int=5)),
        (Path, Path("/a")),
        (PurePosixPath, PurePosixPath("a")),
        (IPv4Address, IPv4Address("192.0.2.1")),
        (IPv6Address, IPv6Address("2001:db8::1")),
        (IPv4Interface, IPv4Interface("192.0.2.1/24")),
        (IPv6Interface, IPv6Interface("2001:db8::1/32")),
        (IPv4Network, IPv4Network("192.0.2.0/24")),
        (IPv6Network, IPv6Network("2001:db8::/32")),
        (zoneinfo.ZoneInfo, zoneinfo.ZoneInfo("UTC")),
    ],
    "`Enum`, `Flag`": [*((Level, level) for level in Level), (Access, Access.READ | Access.WRITE)],
    "dataclass, attrs class, msgspec `Struct`": [
        (Frame, Frame(b"\xff")),
        (Reading, Reading(b"\xff")),
        (Record, Record(b"\xff")),
    ],
    "pydantic model": [(Model, Model(data=b"a"))],
    "a class with a [registered converter](#your-own-classes)": [(Money, Money(5))],
}

CASES = [(hint, value) for samples in SAMPLES.values() for hint, value in samples]


def test_every_row_of_the_table_has_samples() -> None:
    """Those of tables and images are in `PACKAGES`."""
    rows = [types_in(row) for row in ROWS]
    packaged = [types_in(row) for row in PACKAGES]
    assert [row for row in rows if row not in packaged] == [types_in(row) for row in SAMPLES]
    assert [row for row in rows if row in packaged] == packaged


def test_every_converter_has_a_sample() -> None:
    values = [value for _, value in CASES] + [{}.values(), {}.items()]
    names = {_converters.full_name(base) for value in values for base in type(value).__mro__}
    missing = {name for name in _converters._CLASSES if name not in names and not name.startswith("pandas.")}
    # The name of this class depends on the version of Python.
    assert missing - {"pathlib.PurePath", "pathlib._local.PurePath"} == set()


def adapter_of(hint: Any, seen: Callable[[Any], None]) -> type[BaseAdapter]:
    """Return an adapter that takes and returns values of a hint."""

    class Adapter(BaseAdapter):
        @tool
        def alone(self, value: hint) -> hint:
            seen(value)
            return value

        @tool
        def items(self, value: list[hint]) -> list[hint]:
            seen(value[0])
            return value

        @tool
        def optional(self, value: hint | None = None) -> hint | None:
            seen(value)
            return value

        @tool
        def entries(self, value: dict[str, hint]) -> dict[str, hint]:
            seen(value["a"])
            return value

        @tool
        def variable(self, **others: hint) -> tuple[hint, ...]:
            seen(others["a"])
            return (others["a"],)

    for name in ("alone", "items", "optional", "entries", "variable"):
        function = vars(Adapter)[name]
        namespace = {"hint": None if hint is None else hint, "tuple": tuple, "dict": dict, "list": list}
        if hint is None:
            namespace["hint"] = type(None)
        for parameter, text in function.__annotations__.items():
            function.__annotations__[parameter] = eval(text.replace("hint | None", "Optional[hint]"), namespace | SCOPE)  # noqa: S307
    return Adapter


SCOPE = {"Optional": __import__("typing").Optional}


def arrived(value: Any) -> Any:
    """Return a value that can be compared."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, ValuesView | ItemsView):
        return list(value)
    return value.amount if isinstance(value, Money) else value


def check(hint: Any, value: Any, compare: Callable[[Any, Any], bool]) -> None:
    seen: list[Any] = []
    adapter = adapter_of(hint, seen.append)
    form = call_tool(Unhinted, "form", value=value)
    for name, argument, result in (
        ("alone", value, form),
        ("items", [value], [form]),
        ("optional", value, form),
        ("entries", {"a": value}, {"a": form}),
    ):
        found = call_tool(adapter, name, {"value": argument})
        assert compare(found, result), name
    assert compare(call_tool(adapter, "variable", {"a": value}), [form])
    for each in seen:
        if each is None and form is None:
            # The `None` of the optional parameter accepts the form first.
            continue
        assert isinstance(each, type(value)), type(each)
        assert compare(arrived(each), arrived(value))


class Unhinted(BaseAdapter):
    @tool
    def form(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize(("hint", "value"), CASES, ids=[f"{hint}-{at}" for at, (hint, _) in enumerate(CASES)])
def test_a_value_and_its_form_have_one_hint(hint: Any, value: Any) -> None:
    check(hint, value, same)


def frames() -> list[tuple[Any, Any]]:
    import pandas as pd

    table = pd.DataFrame({"a": [1, 2]})
    return [(pd.DataFrame, table), (pd.Series, table["a"])]


def moments() -> list[tuple[Any, Any]]:
    import pandas as pd

    return [
        (pd.Index, pd.Index(["a", "b"])),
        (pd.Timestamp, pd.Timestamp("2026-11-30T10:00")),
        (pd.Timedelta, pd.Timedelta(days=1)),
        (type(pd.NaT), pd.NaT),
        (type(pd.NA), pd.NA),
    ]


def polars_values() -> list[tuple[Any, Any]]:
    import polars as pl

    table = pl.DataFrame({"a": [1, 2]})
    return [(pl.DataFrame, table), (pl.Series, table["a"])]


def arrow_values() -> list[tuple[Any, Any]]:
    import pyarrow as pa

    column = pa.array([1, 2])
    table = pa.table({"a": column})
    return [
        (pa.Table, table),
        (pa.RecordBatch, pa.RecordBatch.from_arrays([column], ["a"])),
        (pa.Array, column),
        (pa.ChunkedArray, pa.chunked_array([column])),
    ]


def relations() -> list[tuple[Any, Any]]:
    import duckdb

    return [(duckdb.DuckDBPyRelation, duckdb.sql("select range as a from range(2)"))]


def images() -> list[tuple[Any, Any]]:
    from PIL import Image

    return [(Image.Image, Image.new("RGB", (2, 2), 5))]


def tensors() -> list[tuple[Any, Any]]:
    import torch

    return [(torch.Tensor, torch.zeros(2))]


#: The function that returns hints and values, and the packages that it needs.
PACKAGES: dict[str, tuple[Callable[[], list[tuple[Any, Any]]], tuple[str, ...]]] = {
    "`pandas.DataFrame`, `pandas.Series`": (frames, ("pandas", "pyarrow")),
    "`polars.DataFrame`, `polars.Series`": (polars_values, ("polars",)),
    "`pyarrow.Table`, `RecordBatch`, `Array`, `ChunkedArray`": (arrow_values, ("pyarrow",)),
    "`duckdb.DuckDBPyRelation`": (relations, ("duckdb", "pyarrow")),
    "`pandas.Index`": (moments, ("pandas",)),
    "`PIL.Image.Image`": (images, ("PIL",)),
    "`torch.Tensor` on the CPU": (tensors, ("torch",)),
}


@pytest.mark.parametrize("row", PACKAGES)
def test_tables_images_and_tensors_are_hints(row: str) -> None:
    samples, packages = PACKAGES[row]
    if missing := [package for package in packages if find_spec(package) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    for hint, value in samples():
        check(hint, value, lambda found, expected: same(sent(found), sent(expected)))


def sent(value: Any) -> Any:
    """Return the form of a value, which can be compared."""
    return _native.decode(*_native.encode(value, "the value"))


class Strict(BaseAdapter):
    @tool
    def steps(self, steps: range) -> None: ...

    @tool
    def fraction(self, fraction: Fraction) -> str:
        return str(fraction)

    @tool
    def address(self, address: IPv4Address, zone: zoneinfo.ZoneInfo | None = None) -> None: ...

    @tool
    def name(self, name: Name) -> Name:
        return name

    @tool
    def plain(self) -> Name:
        return "a"  # type: ignore[return-value]

    @tool
    def missing(self, counts: defaultdict[str, defaultdict[str, list[int]]], other: defaultdict[str, Any]) -> Any:
        counts["a"]["b"].append(1)
        assert other.default_factory is None
        return counts

    @tool
    def level(self, level: Level) -> str:
        return level.name

    @tool
    def export(self) -> Buffer:
        return array.array("B", [1, 2])


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        (
            "steps",
            {"steps": [1, 2, 4]},
            "`steps` of tool `steps` is a list with other items, expected a list of integers",
        ),
        ("steps", {"steps": [1, 1]}, "is a list with other items, expected a list of integers with equal distances"),
        ("steps", {"steps": ["a"]}, "`steps[0]` of tool `steps` is a string, expected integer"),
        ("fraction", {"fraction": "1/0"}, "is '1/0', expected a number, or a fraction such as 1/3 as text"),
        ("fraction", {"fraction": "1e999999999"}, "is '1e999999999', expected a number, or a fraction"),
        ("address", {"address": "1.2.3"}, "is '1.2.3', expected an IPv4 address such as 192.0.2.1"),
        ("address", {"address": "1.2.3.4", "zone": "Mars"}, "is 'Mars', expected a time zone such as Europe/Berlin"),
        ("name", {"name": ""}, "argument `name` of tool `name` is invalid: a name needs letters"),
        ("level", {"level": "a"}, "is 'a', expected the value of a member of `Level`"),
    ],
)
def test_wrong_values_are_rejected(name: str, arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        call_tool(Strict, name, arguments)
    assert problem in str(caught.value)


def test_related_values_are_accepted() -> None:
    assert call_tool(Strict, "fraction", fraction=0.1) == "1/10"
    assert call_tool(Strict, "fraction", fraction=2) == "2"
    assert call_tool(Strict, "missing", counts={}, other={}) == {"a": {"b": [1]}}
    assert call_tool(Strict, "level", level=[1.0, 2]) == "PAIR"
    assert call_tool(Strict, "export") == b"\x01\x02"
    with pytest.raises(ToolFailed, match=r"is a string, expected a `test_hint_values\.Name`"):
        call_tool(Strict, "plain")
