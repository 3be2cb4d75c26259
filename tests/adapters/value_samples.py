"""Values of every type that tools exchange, and what a receiver without a type hint gets."""

from __future__ import annotations

import array
import dataclasses
import enum
import math
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from snakepit_bridge import Encoded

#: The data types of arrays that keep their type.
DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    ">f4",
    ">i8",
]


@dataclasses.dataclass
class Frame:
    """A dataclass with bytes and an array."""

    data: bytes
    pixels: npt.NDArray[Any]
    at: datetime


class Level(enum.Enum):
    """An enum whose values are bytes."""

    RAW = b"\x00\xff"


def _numbers(dtype: str) -> npt.NDArray[Any]:
    return np.arange(6).reshape(2, 3).astype(dtype)


#: The sent values by name, and the values that arrive if they differ.
SAMPLES: dict[str, tuple[Callable[[], Any], Callable[[], Any] | None]] = {
    "null": (lambda: None, None),
    "bool": (lambda: True, None),
    "int": (lambda: 2**70, None),
    "float": (lambda: 0.1, None),
    "nan": (lambda: math.nan, None),
    "infinity": (lambda: -math.inf, None),
    "text": (lambda: "NaN \x00 \U0001f40d", None),
    "empty_list": (lambda: [], None),
    "empty_map": (lambda: {}, None),
    "bytes": (lambda: b"\x00\xff" * 500, None),
    "empty_bytes": (lambda: b"", None),
    "bytearray": (lambda: bytearray(b"abc"), lambda: b"abc"),
    "memoryview": (lambda: memoryview(b"abcdef")[::2], lambda: b"ace"),
    "memoryview_of_floats": (lambda: memoryview(array.array("d", [1.5])), lambda: b"\x00\x00\x00\x00\x00\x00\xf8?"),
    "buffer": (lambda: array.array("B", [1, 2]), lambda: b"\x01\x02"),
    "map_like_an_envelope": (lambda: {"__snakepit__": "bytes", "offset": 0, "a": [b"x", math.nan]}, None),
    "long_integer_beside_bytes": (lambda: [2**70, b"x", {"__snakepit__": 1}], None),
    "array_0d": (lambda: np.array(1.5, dtype="float32"), None),
    "array_empty": (lambda: np.zeros((0, 3), dtype="int16"), None),
    "array_fortran": (lambda: np.asfortranarray(_numbers("float64")), None),
    "array_strided": (lambda: np.arange(20)[::-3], None),
    "array_of_nan": (lambda: np.array([math.nan, math.inf]), None),
    "set": (lambda: {3, 1, 2}, lambda: [1, 2, 3]),
    "frozenset_of_bytes": (lambda: frozenset({b"a"}), lambda: [b"a"]),
    "tuple": (lambda: (1, b"x"), lambda: [1, b"x"]),
    "deque": (lambda: deque([1, b"x"]), lambda: [1, b"x"]),
    "range": (lambda: range(3), lambda: [0, 1, 2]),
    "keys": (lambda: {"a": 1}.keys(), lambda: ["a"]),
    "datetime": (lambda: datetime(2026, 11, 30, 12, tzinfo=UTC), lambda: "2026-11-30T12:00:00+00:00"),
    "date": (lambda: date(2026, 11, 30), lambda: "2026-11-30"),
    "time": (lambda: time(12, 30), lambda: "12:30:00"),
    "timedelta": (lambda: timedelta(days=1, hours=2), lambda: "P1DT2H"),
    "decimal": (lambda: Decimal("0.10"), lambda: "0.10"),
    "fraction": (lambda: Fraction(1, 3), lambda: "1/3"),
    "uuid": (lambda: UUID(int=1), lambda: "00000000-0000-0000-0000-000000000001"),
    "path": (lambda: PurePosixPath("/a/b"), lambda: "/a/b"),
    "enum": (lambda: Level.RAW, lambda: b"\x00\xff"),
    "dataclass": (
        lambda: Frame(b"x", _numbers("float32"), datetime(2026, 1, 1)),
        lambda: {"data": b"x", "pixels": _numbers("float32"), "at": "2026-01-01T00:00:00"},
    ),
}
SAMPLES.update({f"array_{dtype}": (partial(_numbers, dtype), None) for dtype in DTYPES})


def _pandas() -> Any:
    import pandas as pd

    return pd.DataFrame({"a": [1, 2], "b": [0.5, math.nan], "c": ["x", None]}, index=[5, 7])


def _polars() -> Any:
    import polars as pl

    return pl.DataFrame({"a": [1, None], "b": ["x", "y"]})


def _arrow() -> Any:
    import pyarrow as pa

    return pa.table({"a": [1, None], "b": [[1.5], []]})


def _image(mode: str) -> Any:
    from PIL import Image

    return Image.new(mode, (3, 2), color=7)


def _torch() -> Any:
    import torch

    return torch.tensor([[1.5, 2.5]], requires_grad=True)


def _model() -> Any:
    from pydantic import BaseModel

    class Reading(BaseModel):
        data: bytes
        at: datetime

    return Reading(data=b"\xff", at=datetime(2026, 1, 1, tzinfo=UTC))


def _sklearn() -> Any:
    from sklearn.linear_model import LinearRegression

    numbers = np.arange(6.0).reshape(3, 2)
    return LinearRegression().fit(numbers, numbers[:, 0]).predict(numbers)


def _lightgbm() -> Any:
    import lightgbm

    numbers = np.arange(80.0).reshape(40, 2)
    data = lightgbm.Dataset(numbers, numbers[:, 0])
    return lightgbm.train({"verbose": -1, "num_threads": 1}, data, 2).predict(numbers)


def _duckdb() -> Any:
    import duckdb

    return duckdb.sql("select * from (values (1, 'x'), (2, null)) as rows(a, b)")


def _numba() -> Any:
    import numba

    double = numba.njit(lambda numbers: numbers * 2)
    return double(np.arange(3.0))


_PACKAGES: Mapping[str, Mapping[str, tuple[Callable[[], Any], Callable[[], Any] | None]]] = {
    "pandas": {
        "pandas_frame": (_pandas, None),
        "pandas_series": (lambda: _pandas()["b"], None),
        "pandas_index": (lambda: _pandas().columns, lambda: ["a", "b", "c"]),
        "pandas_unnamed_series": (lambda: _pandas()["b"].rename(None), None),
    },
    "polars": {"polars_frame": (_polars, None), "polars_series": (lambda: _polars()["a"], None)},
    "pyarrow": {
        "arrow_table": (_arrow, None),
        "arrow_batch": (lambda: _arrow().to_batches()[0], None),
        "arrow_array": (lambda: _arrow()["b"].combine_chunks(), None),
        "arrow_chunked": (lambda: _arrow()["a"], None),
    },
    "PIL": {f"image_{mode}": (partial(_image, mode), None) for mode in ("1", "L", "RGB", "RGBA", "F", "CMYK")},
    "torch": {"torch": (_torch, lambda: np.array([[1.5, 2.5]], dtype="float32"))},
    "sklearn": {"sklearn": (lambda: np.round(_sklearn()), lambda: np.array([0.0, 2.0, 4.0]))},
    "lightgbm": {"lightgbm": (_lightgbm, None)},
    "duckdb": {
        "duckdb_relation": (_duckdb, lambda: _duckdb().to_arrow_table()),
        "duckdb_rows": (lambda: _duckdb().fetchall(), lambda: [[1, "x"], [2, None]]),
    },
    "numba": {"numba": (_numba, lambda: np.array([0.0, 2.0, 4.0]))},
    "pydantic": {"pydantic": (_model, lambda: {"data": b"\xff", "at": "2026-01-01T00:00:00Z"})},
}
for _package, _samples in _PACKAGES.items():
    if find_spec(_package) is not None and (_package != "pandas" or find_spec("pyarrow") is not None):
        SAMPLES.update(_samples)


def sent(name: str) -> Any:
    """Return a new object of a sample."""
    return SAMPLES[name][0]()


def problem(name: str, value: Any) -> str | None:
    """Describe the difference between a value that arrived and the sample."""
    make, arrives = SAMPLES[name]
    expected = (arrives or make)()
    if isinstance(value, Encoded):
        value = value.load()
    return None if same(value, expected) else f"{name}: {value!r} is not {expected!r}"


def same(value: Any, expected: Any) -> bool:
    """Return whether a value is equal to another one and of the same type."""
    if type(value) is not type(expected):
        # Images have a class for each format.
        is_image = hasattr(value, "tobytes") and type(expected).__module__.startswith("PIL")
        if not is_image:
            return False
    if isinstance(expected, dict):
        return list(value) == list(expected) and all(same(value[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(expected, float):
        return repr(value) == repr(expected)
    if isinstance(expected, np.ndarray):
        same_type = value.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
        equal_nan = expected.dtype.kind in "fc"
        return same_type and value.shape == expected.shape and np.array_equal(value, expected, equal_nan=equal_nan)
    if hasattr(expected, "equals"):
        return bool(value.equals(expected)) and getattr(value, "name", None) == getattr(expected, "name", None)
    if type(expected).__module__.startswith("PIL"):
        return (value.mode, value.size, value.tobytes()) == (expected.mode, expected.size, expected.tobytes())
    return bool(value == expected)


def wrapped(value: Any, depth: int) -> Any:
    """Return a value inside lists and maps."""
    return value if depth == 0 else {"before": b"first", "items": [wrapped(value, depth - 1), 2.5]}


def unwrapped(value: Any, depth: int) -> Any:
    """Return the value inside `wrapped`."""
    for _ in range(depth):
        if value["before"] != b"first" or value["items"][1] != 2.5:
            raise AssertionError(f"the values around it differ: {value!r}")
        value = value["items"][0]
    return value
