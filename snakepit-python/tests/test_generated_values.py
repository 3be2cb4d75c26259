"""Generated values of every type in the table of docs/values.md, without type hints and at any depth."""

from __future__ import annotations

import array
import dataclasses
import enum
import re
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable, Iterator
from datetime import UTC
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import attrs
import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from snakepit_bridge import Encoded, _converters, _native, converter
from value_samples import DTYPES, same, unwrapped, wrapped

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTEGERS = st.integers(-(2**80), 2**80)
BYTES = st.binary(max_size=40)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: arrays.arrays(np.dtype(dtype), SHAPES))
NUMBERS = arrays.arrays(np.dtype("float32"), SHAPES)


class Pair(NamedTuple):
    left: Any
    right: Any


class Level(enum.Enum):
    RAW = b"\x00\xff"
    ARRAY = (1, 2)


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Frame:
    data: bytes
    pixels: Any


@attrs.define
class Reading:
    data: bytes
    pixels: Any


class Record(msgspec.Struct):
    data: bytes
    pixels: Any


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    data: bytes
    pixels: np.ndarray[Any, Any]


class Money:
    """A class with a registered converter, whose form has bytes and an array."""

    def __init__(self, amount: int, scan: bytes, pixels: Any) -> None:
        self.amount, self.scan, self.pixels = amount, scan, pixels


def fields(value: Any) -> dict[str, Any]:
    return {"data": value.data, "pixels": value.pixels}


def listed(value: Any) -> list[Any]:
    return list(value)


def sorted_list(value: Any) -> list[Any]:
    return sorted(value)


def unchanged(value: Any) -> Any:
    return value


def frames() -> st.SearchStrategy[Any]:
    import pandas as pd
    from hypothesis.extra import pandas as frames

    columns = [
        frames.column("a", dtype=int),
        frames.column("b", dtype=float),
        frames.column("c", dtype=bool),
        frames.column("d", elements=TEXTS | st.none(), dtype=object),
    ]
    tables = frames.data_frames(columns, index=frames.range_indexes(max_size=5))
    return tables.map(lambda table: table.astype({"d": "str"})) | frames.series(dtype=float).map(pd.Series)


def polars_values() -> st.SearchStrategy[Any]:
    import polars as pl

    columns = st.fixed_dictionaries({"a": st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=5)})
    tables = columns.map(lambda data: pl.DataFrame(data, schema={"a": pl.Int64}))
    return tables | tables.map(lambda table: table["a"])


def arrow_values() -> st.SearchStrategy[Any]:
    import pyarrow as pa

    columns = st.lists(st.none() | BYTES, max_size=5).map(lambda data: pa.array(data, pa.binary()))
    tables = columns.map(lambda column: pa.table({"a": column}))
    batches = columns.map(lambda column: pa.RecordBatch.from_arrays([column], ["a"]))
    return columns | tables | batches | columns.map(lambda column: pa.chunked_array([column, column]))


def images() -> st.SearchStrategy[Any]:
    from PIL import Image

    sizes = st.tuples(st.integers(1, 8), st.integers(1, 8))
    modes = st.sampled_from(["1", "L", "RGB", "RGBA", "F", "CMYK"])
    return st.builds(lambda mode, size, color: Image.new(mode, size, color), modes, sizes, st.integers(0, 255))


def tensors() -> st.SearchStrategy[Any]:
    import torch

    return NUMBERS.map(torch.from_numpy)


def relations() -> st.SearchStrategy[Any]:
    import duckdb

    return st.integers(0, 5).map(lambda count: duckdb.sql("select range as a from range(?)", params=[count]))


def indexes() -> st.SearchStrategy[Any]:
    import pandas as pd

    return st.lists(TEXTS, max_size=5).map(pd.Index)


class Row(NamedTuple):
    """The values of one row of the table, and what a receiver without a hint gets."""

    values: st.SearchStrategy[Any] | Callable[[], st.SearchStrategy[Any]]
    arrives: Callable[[Any], Any] = unchanged
    #: Packages that the values need.
    packages: tuple[str, ...] = ()


class_fields = (BYTES, NUMBERS)

#: By the first cell of the row.
ROWS: dict[str, list[Row]] = {
    "`None`, `bool`, `str`": [Row(st.none() | st.booleans() | TEXTS)],
    "`int` of any size": [Row(INTEGERS)],
    "`float` with NaN and infinities": [Row(st.floats())],
    "`list`, `tuple`, `NamedTuple`, `deque`, `range`, views of a `dict`": [
        Row(st.lists(BYTES | INTEGERS, max_size=4)),
        Row(st.tuples(BYTES, TEXTS), listed),
        Row(st.builds(Pair, BYTES, NUMBERS), listed),
        Row(st.lists(BYTES, max_size=4).map(deque), listed),
        Row(st.builds(range, st.integers(0, 10)), listed),
        Row(st.dictionaries(TEXTS, BYTES, max_size=4).map(lambda value: value.values()), listed),
        Row(st.dictionaries(TEXTS, BYTES, max_size=4).map(lambda value: value.keys()), listed),
    ],
    "`set`, `frozenset`": [
        Row(st.sets(BYTES, max_size=4), sorted_list),
        Row(st.frozensets(INTEGERS, max_size=4), sorted_list),
    ],
    "`dict` and similar maps": [
        Row(st.dictionaries(TEXTS | st.just("__snakepit__"), BYTES | TEXTS, max_size=4)),
        Row(st.dictionaries(st.integers(), NUMBERS, max_size=4), lambda value: {str(key): value[key] for key in value}),
        Row(st.dictionaries(TEXTS, BYTES, max_size=4).map(OrderedDict), dict),
        Row(st.dictionaries(TEXTS, BYTES, max_size=4).map(UserDict), dict),
    ],
    "`bytes`, `bytearray`, `memoryview`, objects that export a buffer": [
        Row(BYTES),
        Row(BYTES.map(bytearray), bytes),
        Row(BYTES.map(lambda data: memoryview(data)[::2]), bytes),
        Row(st.lists(st.floats(), max_size=4).map(lambda data: array.array("d", data)), bytes),
    ],
    "numpy array of booleans or numbers, including `float16` and complex": [Row(ARRAYS)],
    "numpy array of texts or objects, inside another value": [
        Row(arrays.arrays(np.dtype("U3"), SHAPES, elements=st.text("ab", max_size=3)), lambda value: value.tolist()),
    ],
    "numpy number": [
        Row(INTEGERS.filter(lambda value: abs(value) < 2**63).map(np.int64), int),
        Row(st.floats().map(np.float64), float),
        Row(st.floats(width=16).map(np.float16), float),
        Row(st.booleans().map(np.bool_), bool),
    ],
    "`datetime`, `date`, `time`": [
        Row(st.datetimes(timezones=st.none() | st.just(UTC)), lambda value: value.isoformat()),
        Row(st.dates(), lambda value: value.isoformat()),
        Row(st.times(), lambda value: value.isoformat()),
    ],
    "`timedelta`": [Row(st.timedeltas())],
    "`Decimal`, `Fraction`, `UUID`, `Path`, `IPv4Address`": [
        Row(st.decimals(), str),
        Row(st.fractions(), str),
        Row(st.uuids(), str),
        Row(st.text("ab/.", min_size=1).map(PurePosixPath), str),
        Row(st.ip_addresses(), str),
    ],
    "`Enum`, `Flag`": [
        Row(st.sampled_from(Level), lambda value: listed(value.value) if value is Level.ARRAY else value.value),
        Row(st.sampled_from([Access(0), Access.READ, Access.READ | Access.WRITE]), lambda value: value.value),
    ],
    "dataclass, attrs class, msgspec `Struct`": [
        Row(st.builds(Frame, *class_fields), fields),
        Row(st.builds(Reading, *class_fields), fields),
        Row(st.builds(Record, *class_fields), fields),
    ],
    "pydantic model": [Row(st.builds(Model, data=BYTES, pixels=NUMBERS), fields)],
    "`pandas.DataFrame`, `pandas.Series`": [Row(frames, packages=("pandas", "pyarrow"))],
    "`polars.DataFrame`, `polars.Series`": [Row(polars_values, packages=("polars",))],
    "`pyarrow.Table`, `RecordBatch`, `Array`, `ChunkedArray`": [Row(arrow_values, packages=("pyarrow",))],
    "`duckdb.DuckDBPyRelation`": [
        Row(relations, lambda value: value.to_arrow_table(), packages=("duckdb", "pyarrow")),
    ],
    "`pandas.Index`": [Row(indexes, listed, packages=("pandas",))],
    "`PIL.Image.Image`": [Row(images, packages=("PIL",))],
    "`torch.Tensor` on the CPU": [Row(tensors, lambda value: value.numpy(), packages=("torch",))],
    "a class with a [registered converter](#your-own-classes)": [
        Row(
            st.builds(Money, INTEGERS, BYTES, ARRAYS),
            lambda value: {"amount": value.amount, "parts": [value.scan, {"pixels": value.pixels}]},
        )
    ],
}
CASES = [(name, row) for name, rows in ROWS.items() for row in rows]


@pytest.fixture(autouse=True)
def _converter() -> Iterator[None]:
    converter(Money, encode=lambda value: {"amount": value.amount, "parts": [value.scan, {"pixels": value.pixels}]})
    yield
    # Other modules register their converters when they are imported.
    del _converters._registered[Money]
    _converters._known.clear()


def test_every_row_of_the_table_has_generated_values() -> None:
    text = (Path(__file__).parents[2] / "docs/values.md").read_text()
    table = text.partition("## Types")[2].partition("###")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]
    assert [types_in(row) for row in rows[2:]] == [types_in(row) for row in ROWS]


def types_in(row: str) -> list[str]:
    """Return the names of the types in a cell. The words around them do not matter."""
    return re.findall(r"`([^`]+)`", row) or row.split()[:2]


def loaded(value: Any) -> Any:
    return value.load() if isinstance(value, Encoded) else value


@pytest.mark.parametrize(("name", "row"), CASES, ids=[f"{name}-{at}" for at, (name, _) in enumerate(CASES)])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), depth=st.integers(0, 4))
def test_values_arrive_whole_at_any_depth(name: str, row: Row, data: st.DataObject, depth: int) -> None:
    missing = [package for package in row.packages if find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    value = data.draw(row.values() if callable(row.values) else row.values)
    # Converting a duration is the subject of test_hints.
    expected = row.arrives(value) if name != "`timedelta`" else _converters.encode(value)
    sent = wrapped(value, depth)
    if depth > 0 or "inside another value" not in name:
        kind, json, buffers = _native.encode(sent, "the value")
        assert same(loaded(unwrapped(_native.decode(kind, json, buffers), depth)), expected)
    content = _native.to_program(sent, "program")
    assert same(loaded(unwrapped(_native.from_program(*content), depth)), expected)


#: Any value that arrives as it was sent, with bytes and arrays at any place.
WHOLE = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats() | TEXTS | BYTES | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS | st.sampled_from(["__snakepit__", "offset", "length", "data"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(value=WHOLE)
def test_nested_buffers_arrive_as_they_were_sent(value: Any) -> None:
    assert same(_native.decode(*_native.encode(value, "the value")), value)
    assert same(_native.from_program(*_native.to_program(value, "program")), value)
