"""Values of every hint survive the way from a result of one tool to an argument of another, for generated values."""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import numpy as np
import numpy.typing as npt
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from snakepit_bridge import BaseAdapter, tool
from snakepit_bridge.testing import ToolTester
from value_samples import DTYPES

#: Texts without lone surrogates, which have no UTF-8 form.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTEGERS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
ZONES = st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=30))])
#: Durations of whole microseconds.
DURATIONS = st.timedeltas(timedelta(days=-10_000), timedelta(days=10_000))


class Color(enum.Enum):
    RED = "red"
    FIVE = 5


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Item:
    name: str
    price: Decimal
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Order:
    items: list[Item]
    due: date | None = None


@attrs.define
class Point:
    x: float
    y: float


class Reading(msgspec.Struct):
    at: datetime
    value: float | None


class Model(pydantic.BaseModel):
    names: list[str]
    size: int


class Keys(TypedDict):
    name: str
    count: int


class Pair(NamedTuple):
    left: int
    right: str


ITEMS = st.builds(
    Item, TEXTS, st.decimals(allow_nan=False, allow_infinity=False, places=2), st.lists(TEXTS, max_size=3)
)

TYPES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "bool": (bool, st.booleans()),
    "int": (int, INTEGERS),
    "float": (float, FLOATS),
    "str": (str, TEXTS),
    "none": (None, st.none()),
    "bytes": (bytes, st.binary()),
    "bytearray": (bytearray, st.binary().map(bytearray)),
    "nested bytes": (list[bytes], st.lists(st.binary(), max_size=3)),
    "list": (list[int], st.lists(INTEGERS)),
    "tuple": (tuple[int, str], st.tuples(INTEGERS, TEXTS)),
    "long tuple": (tuple[float, ...], st.lists(FLOATS).map(tuple)),
    "set": (set[str], st.sets(TEXTS)),
    "frozenset": (frozenset[int], st.frozensets(INTEGERS)),
    "deque": (deque[int], st.lists(INTEGERS).map(deque)),
    "dict": (dict[str, float], st.dictionaries(TEXTS, FLOATS)),
    "dict of numbers": (dict[int, bool], st.dictionaries(INTEGERS, st.booleans())),
    "union": (int | str | None, st.one_of(INTEGERS, TEXTS, st.none())),
    "literal": (Literal["a", 1, True], st.sampled_from(["a", 1])),
    "enum": (Color, st.sampled_from(Color)),
    "flag": (Access, st.sampled_from([Access(0), Access.READ, Access.READ | Access.WRITE])),
    "datetime": (datetime, st.datetimes(timezones=ZONES)),
    "date": (date, st.dates()),
    "time": (time, st.times(timezones=ZONES)),
    "timedelta": (timedelta, DURATIONS),
    "decimal": (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    "uuid": (UUID, st.uuids()),
    "path": (Path, TEXTS.filter(lambda text: "\0" not in text).map(Path)),
    "dataclass": (Order, st.builds(Order, st.lists(ITEMS, max_size=3), st.one_of(st.none(), st.dates()))),
    "attrs": (Point, st.builds(Point, FLOATS, FLOATS)),
    "msgspec": (Reading, st.builds(Reading, st.datetimes(timezones=ZONES), st.one_of(st.none(), FLOATS))),
    "pydantic": (Model, st.builds(Model, names=st.lists(TEXTS, max_size=3), size=INTEGERS)),
    "typed dict": (Keys, st.fixed_dictionaries({"name": TEXTS, "count": INTEGERS})),
    "named tuple": (Pair, st.builds(Pair, INTEGERS, TEXTS)),
    "nested": (
        dict[str, list[Pair | None]],
        st.dictionaries(TEXTS, st.lists(st.one_of(st.none(), st.builds(Pair, INTEGERS, TEXTS)), max_size=3)),
    ),
}

#: The data types in the byte order of this machine.
NATIVE = [dtype for dtype in DTYPES if not dtype.startswith(">")]


class Echo:
    """A tester with a tool that returns a value of one type, and a tool that receives one."""

    def __init__(self, hint: Any) -> None:
        self.value: Any = None
        self.received: Any = None

        def give() -> Any:
            return self.value

        def take(value: Any) -> None:
            self.received = value

        give.__annotations__["return"] = hint
        take.__annotations__["value"] = hint
        namespace = {"give": staticmethod(tool(give)), "take": staticmethod(tool(take))}
        self._tester = ToolTester(type("Echo", (BaseAdapter,), namespace))

    def round_trip(self, value: Any) -> Any:
        """Return the value that a tool receives if another tool returned ``value``."""
        self.value = value
        self._tester.call("take", value=self._tester.call("give"))
        return self.received

    def close(self) -> None:
        self._tester.close()


@pytest.fixture
def echo(request: pytest.FixtureRequest) -> Any:
    tester = Echo(request.param)
    yield tester
    tester.close()


# The tester keeps no state between the examples.
COMMON = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(("echo", "strategy"), TYPES.values(), ids=TYPES.keys(), indirect=["echo"])
@COMMON
@given(data=st.data())
def test_a_value_keeps_its_value_and_type(echo: Echo, strategy: st.SearchStrategy[Any], data: st.DataObject) -> None:
    value = data.draw(strategy)
    received = echo.round_trip(value)
    assert type(received) is type(value)
    assert received == value


@pytest.mark.parametrize("echo", [np.ndarray], indirect=True, ids=["ndarray"])
@COMMON
@given(data=st.data(), dtype=st.sampled_from(NATIVE))
def test_arrays_keep_their_data_shape_and_type(echo: Echo, data: st.DataObject, dtype: str) -> None:
    value = data.draw(arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0, max_side=5)))
    received = echo.round_trip(value)
    assert (received.dtype, received.shape) == (value.dtype, value.shape)
    np.testing.assert_array_equal(received, value)


@pytest.mark.parametrize("echo", [npt.NDArray[np.float32]], indirect=True, ids=["float32"])
@COMMON
@given(value=arrays.arrays(np.float32, arrays.array_shapes(max_side=5)))
def test_arrays_of_a_declared_type_keep_nan_and_infinity(echo: Echo, value: npt.NDArray[np.float32]) -> None:
    received = echo.round_trip(value)
    assert received.dtype == np.float32
    np.testing.assert_array_equal(received, value)


#: Values that need no hint.
PLAIN = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize("echo", [Any], indirect=True, ids=["any"])
@COMMON
@given(value=PLAIN)
def test_json_like_values_need_no_hint(echo: Echo, value: Any) -> None:
    assert echo.round_trip(value) == value


@pytest.mark.parametrize("echo", [float], indirect=True, ids=["float"])
def test_special_floats_survive(echo: Echo) -> None:
    for value in (math.inf, -math.inf):
        assert echo.round_trip(value) == value
    assert math.isnan(echo.round_trip(math.nan))
