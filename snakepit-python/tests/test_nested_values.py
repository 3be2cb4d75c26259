"""The wire form of nested values: envelopes that peers send, and the limits of those that this package writes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from snakepit_bridge import _native
from value_samples import same


def round_trip(value: Any) -> Any:
    return _native.decode(*_native.encode(value, "the value"))


def nested(value: str) -> bytes:
    return f'{{"binary_format":"nested","value":{value}}}'.encode()


ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in "__snakepit__")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ('[{"__snakepit__":"bytes","offset":0,"length":2},{"__snakepit__":"bytes","offset":1,"length":1}]', "twice"),
        ('[{"__snakepit__":"bytes","offset":7,"length":2}]', "refers to bytes 7 to 9 of its buffers, which have 8"),
        (f'[{{"__snakepit__":"bytes","offset":{2**63},"length":{2**63}}}]', "beyond the size of any buffer"),
        ('[{"__snakepit__":"bytes","offset":0,"length":8,"a":{"__snakepit__":"bytes","data":""}}]', "inside of it"),
        (f'[{{"{ESCAPED}":"bytes","offset":7,"length":2}}]', "refers to bytes 7 to 9"),
        ('[{"__snakepit__":"bytes","offset":"0","length":1}]', "expected a number of bytes"),
        ('[{"__snakepit__":"bytes","offset":-1,"length":1}]', "expected a number of bytes"),
        ('[{"__snakepit__":"bytes","offset":0,"offset":1,"length":1}]', "a key that is there twice"),
        ('[{"__snakepit__":"bytes","offset":0,"length":1,"data":""}]', "either `data`"),
        ("[" * 200 + '{"__snakepit__":"bytes","offset":0,"length":1}' + "]" * 200, "deeper than 127"),
    ],
)
def test_invalid_references_are_rejected_where_a_value_arrives(value: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        _native.decode("list", nested(value), b"12345678")
    # A program is stored as it is.
    text = nested(value)
    data = len(text).to_bytes(8, "little") + text + b"12345678"
    with pytest.raises(ValueError, match=problem):
        _native.from_program(data, "application/vnd.snakepit.nested")


@pytest.mark.parametrize("more", ["", ",1180591620717411303424"])
def test_the_key_of_an_envelope_may_be_escaped(more: str) -> None:
    value = f'[{{"{ESCAPED}":"bytes","offset":1,"length":2}}{more}]'
    assert _native.decode("list", nested(value), b"123")[0] == b"23"
    assert _native.decode("list", f'[{{"{ESCAPED}":"bytes","data":"MTI="}}{more}]'.encode())[0] == b"12"


@pytest.mark.parametrize(
    "envelope",
    [
        {"__snakepit__": "bytes", "offset": 0, "length": 1},
        {"__snakepit__": "bytes", "offset": "0", "length": "1"},
        {"__snakepit__": "bytes", "offset": -1, "length": 2**70},
        {"__snakepit__": "bytes", "offset": True, "length": True},
        {"__snakepit__": "bytes"},
        {"__snakepit__": "map"},
        {"__snakepit__": "map", "items": [["a"]]},
        {"__snakepit__": "map", "items": [[1, 2]]},
        {"__snakepit__": "map", "items": [[["a"], 2]]},
        {"__snakepit__": "map", "items": "ab"},
    ],
)
def test_an_invalid_envelope_is_a_value_error(envelope: dict[str, Any]) -> None:
    for more in ([], [2**70]):
        with pytest.raises(ValueError, match=r"bytes|map"):
            _native.decode("list", json.dumps([envelope, *more]).encode())


def test_the_keys_of_an_escaped_map_are_texts() -> None:
    assert round_trip({"__snakepit__": 1, 2: b"x", None: 3}) == {"__snakepit__": 1, "2": b"x", "null": 3}
    with pytest.raises(TypeError, match="two keys that are both"):
        round_trip({"__snakepit__": 1, 2: 3, "2": 4})


def test_maps_that_look_like_envelopes_take_linear_time() -> None:
    value: Any = 1
    for _ in range(40):
        value = {"a": value, "__snakepit__": b"x"}
    assert same(round_trip(value), value)


@pytest.mark.parametrize(("innermost", "levels"), [(b"x", 126), (np.ones(1), 125), ({"__snakepit__": 1}, 124)])
def test_the_deepest_values_that_are_written_can_be_read(innermost: Any, levels: int) -> None:
    def deep(levels: int) -> Any:
        value = innermost
        for _ in range(levels):
            value = [value]
        return value

    assert same(round_trip(deep(levels)), deep(levels))
    with pytest.raises(ValueError, match="nested deeper than 127 levels"):
        round_trip(deep(levels + 1))


def test_arrays_are_aligned_in_the_buffers() -> None:
    _, text, buffers = _native.encode([b"abc", np.ones(2), b"d", np.ones(1, dtype="complex64")], "the value")
    parts = json.loads(text)["value"]
    assert [part["offset"] for part in parts] == [0, 8, 24, 32]
    assert len(buffers or b"") == 40
