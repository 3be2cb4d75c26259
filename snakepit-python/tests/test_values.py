"""Values on the wire: what a worker reads is what the host sent, bit for bit."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import numpy as np
import pytest

from snakepit_bridge import _native


def over_the_wire(value: Any) -> Any:
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
def test_plain_values_come_back_equal_and_of_the_same_type(value: Any) -> None:
    back = over_the_wire(value)
    assert back == value
    assert type(back) is type(value)


def test_floats_keep_their_specials_and_their_sign() -> None:
    assert math.isnan(over_the_wire(math.nan))
    assert over_the_wire(math.inf) == math.inf
    assert over_the_wire(-math.inf) == -math.inf
    assert math.copysign(1, over_the_wire(-0.0)) == -1


def test_relatives_of_plain_types_travel_as_them() -> None:
    class Colour(IntEnum):
        RED = 1

    assert over_the_wire(Colour.RED) == 1
    assert over_the_wire((1, 2)) == [1, 2]
    assert over_the_wire(bytearray(b"ab")) == b"ab"
    assert over_the_wire(memoryview(b"abcd")[::2]) == b"ac"
    assert over_the_wire({1: "a", None: "b", 2.5: "c"}) == {"1": "a", "null": "b", "2.5": "c"}
    assert over_the_wire(np.float32(0.5)) == 0.5
    assert over_the_wire({"n": np.int64(3), "row": np.arange(3)}) == {"n": 3, "row": [0, 1, 2]}


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
    back = over_the_wire(array)
    assert back.shape == array.shape
    assert back.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, array)


def test_what_is_no_plain_data_is_refused_with_its_place() -> None:
    with pytest.raises(TypeError, match=r"the value\['a'\]\[2\] is a `set`"):
        _native.encode({"a": [1, 2, {3}]}, "the value")
    with pytest.raises(TypeError, match="object"):
        _native.encode(np.array([object()]), "the value")
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="contains itself"):
        _native.encode(loop, "the value")
    with pytest.raises(UnicodeEncodeError):
        _native.encode("\ud800", "the value")


@pytest.mark.parametrize("json", [b"", b"{", b"nul", b"[1,]", b"\xff", b"1 2", b"[" * 100_000])
def test_malformed_json_is_a_value_error(json: bytes) -> None:
    with pytest.raises(ValueError, match="JSON"):
        _native.from_json(json)


def test_a_buffer_that_says_so_is_a_list() -> None:
    metadata = b'{"shape":[2,2],"dtype":"%s","binary_format":"raw","container":"list","type":"tensor"}'
    for dtype in ("float64", "float32"):
        data = np.array([[1.5, -0.0], [3, 4]], dtype=dtype).tobytes()
        back = _native.decode("tensor", metadata % dtype.encode(), data)
        assert back == [[1.5, 0.0], [3.0, 4.0]]
        assert math.copysign(1, back[0][1]) == -1
    assert _native.decode("embedding", metadata.replace(b"2,2", b"0") % b"float64", b"") == []
    for name in (b"float64", b"float32"):
        with pytest.raises(ValueError, match="do not make a list"):
            _native.decode("tensor", metadata.replace(b"2,2", b"1099511627776,0") % name, b"")
        with pytest.raises(ValueError, match="do not make a list"):
            _native.decode("tensor", metadata.replace(b"2,2", b"600" + b",1" * 20) % name, bytes(600 * 8))


def test_items_are_in_the_order_that_their_type_names() -> None:
    for dtype in ("float32", "<f4", ">f4"):
        data = np.array([1.5, 2], dtype=dtype).tobytes()
        back = _native.decode("tensor", b'{"shape":[2],"dtype":"%s"}' % dtype.encode(), data)
        assert back.tolist() == [1.5, 2]


def test_pickles_are_not_read_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_buffers_that_do_not_fit_their_metadata_are_refused(metadata: bytes, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"metadata|dtype|shape|buffer"):
        _native.decode("tensor", metadata, data)
