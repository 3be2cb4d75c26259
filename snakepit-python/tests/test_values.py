"""Values on the wire: a worker receives exactly the values that the host sent."""

from __future__ import annotations

import json
import math
import re
from enum import IntEnum
from typing import Any

import numpy as np
import pytest

from snakepit_bridge import InvalidArgumentError, InvalidTypeError, _native


def round_trip(value: Any) -> Any:
    return _native.decode(*_native.encode(value, "the value"))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**53 + 1,
        2**63,
        -(2**200),
        0.1,
        -0.0,
        5e-324,
        1.7976931348623157e308,
        "",
        'ünïcödé \U0001f40d \u2028 \x00 "quoted" \\',
        [],
        {},
        [1, "a", None, [True, {"b": 2.5}]],
        {"a": {"b": [1, 2, {"c": None}]}, "": 1},
        b"",
        b"\x00\xff" * 1000,
    ],
)
def test_plain_values_keep_value_and_type(value: Any) -> None:
    back = round_trip(value)
    assert back == value
    assert type(back) is type(value)


def test_floats_keep_nan_infinity_and_sign() -> None:
    assert math.isnan(round_trip(math.nan))
    assert round_trip(math.inf) == math.inf
    assert round_trip(-math.inf) == -math.inf
    assert math.copysign(1, round_trip(-0.0)) == -1


def test_subclasses_and_similar_types_arrive_as_plain_types() -> None:
    class Colour(IntEnum):
        RED = 1

    assert round_trip(Colour.RED) == 1
    assert round_trip((1, 2)) == [1, 2]
    assert round_trip(bytearray(b"ab")) == b"ab"
    assert round_trip(memoryview(b"abcd")[::2]) == b"ac"
    assert round_trip({1: "a", None: "b", 2.5: "c"}) == {"1": "a", "null": "b", "2.5": "c"}
    assert round_trip(np.float32(0.5)) == 0.5
    assert round_trip({"n": np.int64(3), "texts": np.array(["a", "b"])}) == {"n": 3, "texts": ["a", "b"]}
    # The same rule applies to whole values.
    assert round_trip(np.array([["a"], ["b"]])) == [["a"], ["b"]]
    assert round_trip(np.array([1, "a", None], dtype=object)) == [1, "a", None]
    assert round_trip(np.array("a")) == "a"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float64).reshape(2, 3, 4),
        np.arange(6, dtype=np.int32),
        np.zeros((0, 3), dtype=np.uint8),
        np.array(7.5),
        np.array([[True, False]]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(10.0)[::3],
        np.arange(4, dtype=">i2"),
        np.array([1 + 2j, 3]),
    ],
)
def test_arrays_keep_shape_values_and_type(array: Any) -> None:
    type_name, _, buffer = _native.encode(array, "the value")
    assert type_name == "tensor"
    assert buffer is not None
    back = round_trip(array)
    assert back.shape == array.shape
    assert back.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, array)


def test_other_types_are_rejected_with_their_path() -> None:
    with pytest.raises(
        TypeError, match=r"the value\['a'\]\[2\] is a `complex`, which has no wire form; return a str, .*"
    ):
        _native.encode({"a": [1, 2, 3j]}, "the value")
    with pytest.raises(TypeError, match="object"):
        _native.encode(np.array([object()]), "the value")
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="contains itself"):
        _native.encode(loop, "the value")
    with pytest.raises(UnicodeEncodeError):
        _native.encode("\ud800", "the value")


class _Unconvertible(np.ndarray):
    @property
    def dtype(self) -> Any:
        raise KeyError("not today")


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ("\ud800", ""),
        (["a\udce9"], "[0]"),
        ({"a": {"\ud800": 1}}, "['a'] key '\\ud800'"),
        (10**5000, ""),
        ({"n": [1, -(10**5000)]}, "['n'][1]"),
        ({10**5000: 1}, " key"),
        (np.zeros(2).view(_Unconvertible), ""),
        ([np.zeros(2).view(_Unconvertible)], "[0]"),
        ({np.datetime64("2026-01-01"): 1}, ""),
        (object(), ""),
        ([object()], "[0]"),
    ],
    # pytest would convert the integers to text for the test ids.
    ids=lambda value: type(value).__name__,
)
def test_every_conversion_error_names_the_value(value: Any, where: str) -> None:
    convert: Any
    for convert in (_native.encode, _native.to_program):
        with pytest.raises((TypeError, ValueError), match=re.escape(f"the result of tool `x`{where}")):
            convert(value, "the result of tool `x`")
    with pytest.raises(InvalidArgumentError, match=re.escape(f"argument `a`{where}")) as caught:
        _native.encode(value, "argument `a`", is_argument=True)
    assert not caught.value.may_have_run


def test_the_exception_and_its_advice_depend_on_the_purpose_of_the_value() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidArgumentError, match="contains itself; pass a flatter structure"):
        _native.encode(loop, "argument `a`", is_argument=True)
    with pytest.raises(InvalidArgumentError, match="contains itself; store a flatter structure"):
        _native.to_program(loop, "program `p`")
    with pytest.raises(ValueError, match="contains itself; return a flatter structure") as result:
        _native.encode(loop, "the result")
    assert type(result.value) is ValueError
    for kind in (InvalidTypeError, InvalidArgumentError, TypeError, ValueError):
        with pytest.raises(kind, match="has no wire form; pass a str"):
            _native.encode([object()], "argument `a`", is_argument=True)
    # The original exception shows where the conversion failed.
    with pytest.raises(InvalidArgumentError) as wrapped:
        _native.encode(np.zeros(2).view(_Unconvertible), "argument `a`", is_argument=True)
    assert isinstance(wrapped.value.__cause__, KeyError)


def test_an_interruption_is_not_wrapped_in_an_error() -> None:
    class Interrupted(np.ndarray):
        @property
        def dtype(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _native.to_program([np.zeros(2).view(Interrupted)], "the value")


@pytest.mark.parametrize("json", [b"", b"{", b"nul", b"[1,]", b"\xff", b"1 2", b"[" * 100_000])
def test_malformed_json_is_a_value_error(json: bytes) -> None:
    with pytest.raises(ValueError, match="JSON"):
        _native.from_program(json, "application/json")


def test_a_buffer_marked_as_list_is_a_list() -> None:
    metadata = b'{"shape":[2,2],"dtype":"%s","binary_format":"raw","container":"list","type":"tensor"}'
    for dtype in ("float64", "float32"):
        data = np.array([[1.5, -0.0], [3, 4]], dtype=dtype).tobytes()
        back = _native.decode("tensor", metadata % dtype.encode(), data)
        assert back == [[1.5, 0.0], [3.0, 4.0]]
        assert math.copysign(1, back[0][1]) == -1
    assert _native.decode("embedding", metadata.replace(b"2,2", b"0") % b"float64", b"") == []
    for name in (b"float64", b"float32"):
        with pytest.raises(ValueError, match="does not match a list"):
            _native.decode("tensor", metadata.replace(b"2,2", b"1099511627776,0") % name, b"")
        with pytest.raises(ValueError, match="does not match a list"):
            _native.decode("tensor", metadata.replace(b"2,2", b"600" + b",1" * 20) % name, bytes(600 * 8))


def test_the_byte_order_of_a_dtype_is_respected() -> None:
    for dtype in ("float32", "<f4", ">f4"):
        data = np.array([1.5, 2], dtype=dtype).tobytes()
        back = _native.decode("tensor", b'{"shape":[2],"dtype":"%s"}' % dtype.encode(), data)
        assert back.tolist() == [1.5, 2]


def test_pickles_are_rejected_unless_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    metadata = b'{"type":"tensor","binary_format":"pickle","shape":[1],"dtype":"float64"}'
    data = pickle.dumps([1.0])
    with pytest.raises(ValueError, match="SNAKEPIT_ALLOW_PICKLE"):
        _native.decode("tensor", metadata, data)
    monkeypatch.setenv("SNAKEPIT_ALLOW_PICKLE", "1")
    assert list(_native.decode("tensor", metadata, data)) == [1.0]


@pytest.mark.parametrize(
    ("metadata", "data"),
    [
        (b'{"shape":[2],"dtype":"float64","binary_format":"raw"}', b"\x00" * 8),
        (b'{"shape":[1],"dtype":"no such","binary_format":"raw"}', b"\x00" * 8),
        (b'{"shape":[1],"dtype":"object","binary_format":"raw"}', b"\x00" * 8),
        (b'{"shape":[-1],"dtype":"float64","binary_format":"raw"}', b"\x00" * 8),
        (b"not json", b""),
        (b'{"shape":[2],"dtype":"float64","binary_format":"raw","container":"list"}', b"\x00" * 8),
        (b'{"shape":[],"dtype":"float64","binary_format":"raw","container":"list"}', b"\x00" * 8),
        (b'{"shape":[1000000000,0],"dtype":"float64","binary_format":"raw","container":"list"}', b""),
        (b'{"shape":[9223372036854775807,9],"dtype":"float64","binary_format":"raw","container":"list"}', b""),
        (
            b'{"shape":[' + b"1," * 100_000 + b'1],"dtype":"float64","binary_format":"raw","container":"list"}',
            b"\x00" * 8,
        ),
    ],
)
def test_buffers_that_do_not_match_their_metadata_are_rejected(metadata: bytes, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"metadata|dtype|shape|buffer"):
        _native.decode("tensor", metadata, data)


@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: {"a": [v]}], ids=["alone", "inside"])
def test_values_that_would_change_are_rejected_with_a_fix_that_works(wrap: Any) -> None:
    masked = np.ma.array([1, 2, 3], mask=[False, True, False])
    dates = np.array(["2020-01-01T00:00:00.000000001"], dtype="datetime64[ns]")
    spans = np.array([5], dtype="timedelta64[ns]")
    records = np.array([(1, 2.0)], dtype=[("a", int), ("b", float)])
    for value, problem, fixed in [
        (masked, r"is a `numpy\.ma(\.core)?\.MaskedArray`, whose masked values .* filled\(value\)", masked.filled(-1)),
        (masked, r"with tolist\(\), where they are None", masked.tolist()),
        (np.ma.masked, "masked values", None),
        (dates, r"dtype `datetime64\[ns\]`.* astype\(str\)\.tolist\(\)", dates.astype(str).tolist()),
        (dates[0], r"dtype `datetime64\[ns\]`", str(dates[0])),
        (spans, "astype\\('timedelta64\\[s\\]'\\)\\.astype\\(float\\)", spans.astype("timedelta64[s]").astype(float)),
        (spans[0], r"timedelta64\[ns\]", 5e-9),
        (records, "a dict with an array for each field", {"a": records["a"].tolist()}),
    ]:
        with pytest.raises(TypeError, match=problem):
            _native.encode(wrap(value), "the value")
        round_trip(wrap(fixed))
    long = np.longdouble(1) / 3
    for value, fixed in [(long, float(long)), (long, str(long)), (np.clongdouble(long), None)]:
        with pytest.raises(TypeError, match=r"the value.* is a `numpy.*longdouble`, .* with float\(\) or complex\(\)"):
            _native.encode(wrap(value), "the value")
        round_trip(wrap(fixed))
    with pytest.raises(TypeError, match=r"the value is a `numpy\.datetime64`"):
        _native.encode(dates[0], "the value")


@pytest.mark.parametrize(
    "value",
    [
        {1: "a", "1": "b"},
        {True: 1, "true": 2},
        {None: 1, "null": 2},
        {1.5: 1, "1.5": 2},
        {math.nan: 1, float("nan"): 2},
    ],
)
def test_keys_with_equal_text_are_rejected(value: dict[Any, Any]) -> None:
    with pytest.raises(TypeError, match=r"the value\['x'\] has two keys that are both \"[^\"]+\" in JSON"):
        _native.encode({"x": value}, "the value")


@pytest.mark.parametrize("innermost", [[], {}, [1]])
def test_every_value_that_is_written_can_be_read(innermost: Any) -> None:
    def nested(levels: int) -> Any:
        value = innermost
        for _ in range(levels - 1):
            value = [value]
        return value

    assert round_trip(nested(127)) == nested(127)
    with pytest.raises(ValueError, match="nested deeper than 127 levels"):
        round_trip(nested(128))


def test_nested_nan_and_infinities_stay_floats_and_text_stays_text() -> None:
    value = {"x": [1.0, math.nan, (math.inf, [-math.inf])], "names": ["NaN", "Infinity", "-Infinity"], "NaN": "NaN"}
    for more in ({}, {"long": 2**70, "text": 'say "NaN" and "Infinity"'}):
        back = round_trip({**value, **more})
        assert back["x"][0] == 1.0
        assert math.isnan(back["x"][1])
        assert back["x"][2] == [math.inf, [-math.inf]]
        assert (back["names"], back["NaN"]) == (value["names"], "NaN")
        assert {key: back[key] for key in more} == more
    # Other readers see the strings that the protocol defines.
    assert json.loads(_native.encode([math.nan, -math.inf], "x")[1]) == ["NaN", "-Infinity"]
    assert math.isnan(_native.from_program(*_native.to_program(math.nan, "x")))
    assert _native.encode(math.nan, "x")[:2] == ("float", b'"NaN"')
    # In a value that holds only numbers, the plain name is a number, too.
    assert math.isnan(_native.decode("embedding", b'[1.5, "NaN"]')[1])


@pytest.mark.parametrize(
    ("type_name", "good", "bad"),
    [
        ("integer", b"5", b'"abc"'),
        ("integer", b"5.0", b"5.5"),
        ("integer", b"-1", b"true"),
        ("float", b"5", b'"abc"'),
        ("string", b'"x"', b"1"),
        ("choice", b'"x"', b"{}"),
        ("module", b'"x"', b"null"),
        ("boolean", b"true", b"1"),
        ("null", b"null", b"0"),
        ("map", b"{}", b"[]"),
        ("list", b"[]", b"{}"),
        ("tensor", b"[[1]]", b"1"),
        ("embedding", b"[1]", b'"x"'),
        ("bytes", None, b'"x"'),
    ],
)
def test_json_of_another_type_than_declared_is_rejected(type_name: str, good: bytes | None, bad: bytes) -> None:
    if good is not None:
        expected = float(good) if type_name == "float" else json.loads(good.replace(b".0", b""))
        back = _native.decode(type_name, good)
        assert (back, type(back)) == (expected, type(expected))
    with pytest.raises(ValueError, match=r"it is declared|invalid JSON of a float"):
        _native.decode(type_name, bad)
