"""Bytes, arrays and objects at any depth, and converters."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import snakepit_bridge
from snakepit_bridge import Encoded, InvalidTypeError, _converters, _markers, _native, converter, tool
from snakepit_bridge.testing import ToolTester, call_tool
from value_samples import SAMPLES, problem, same, sent, unwrapped, wrapped


def run(script: str, **environment: str) -> str:
    """Return the output of a script in a new process."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout  # noqa: S603


def round_trip(value: Any) -> Any:
    return _native.decode(*_native.encode(value, "the value"))


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("name", SAMPLES)
def test_values_of_every_type_survive_at_any_depth(name: str, depth: int) -> None:
    assert problem(name, unwrapped(round_trip(wrapped(sent(name), depth)), depth)) is None
    data, content_type = _native.to_program(wrapped(sent(name), depth), "program")
    assert problem(name, unwrapped(_native.from_program(data, content_type), depth)) is None


def test_buffers_travel_beside_the_json_without_base64() -> None:
    image = bytes(range(256)) * 400
    kind, text, buffers = _native.encode({"image": image, "scores": [np.ones(3)], "w": 3}, "the value")
    assert kind == "map"
    assert len(text) < 300
    assert buffers == image + np.ones(3).tobytes()
    value = json.loads(text)
    assert list(value) == ["binary_format", "value"]
    assert value["value"]["image"] == {"__snakepit__": "bytes", "offset": 0, "length": 102400}


def test_values_without_buffers_are_plain_json() -> None:
    assert _native.encode({"a": [1, "x", None]}, "the value") == ("map", b'{"a":[1,"x",null]}', None)
    assert _native.to_program([1], "program") == (b"[1]", "application/json")


def test_clients_without_buffers_send_base64() -> None:
    array = {
        "__snakepit__": "tensor",
        "dtype": "float32",
        "shape": [2],
        "data": b64encode(b"\0\0\x80?\0\0\0@").decode(),
    }
    text = json.dumps([{"__snakepit__": "bytes", "data": "AP8="}, array, 2**70]).encode()
    for long in (text, text.replace(b", 1180591620717411303424", b"")):
        value = _native.decode("list", long)
        assert value[0] == b"\x00\xff"
        assert same(value[1], np.array([1, 2], dtype="float32"))
    with pytest.raises(ValueError, match="not valid base64"):
        _native.decode("list", b'[{"__snakepit__": "bytes", "data": "!"}]')


def test_arrays_and_bytes_are_writable_copies() -> None:
    source = np.zeros(3)
    back = round_trip([source, source])
    back[0][0] = 1
    assert (source[0], back[1][0]) == (0, 0)


def test_a_single_bytes_object_is_not_copied_and_others_are_copied_once() -> None:
    # A second buffer of this size would double the peak.
    script = """
import tracemalloc
import numpy as np
from snakepit_bridge import _native
size = 32 * 2**20
values = [np.ones(size // 2, dtype="u1"), b"x" * (size // 2), bytearray(8)]
tracemalloc.start()
form = _native.encode(values, "v")
print(tracemalloc.get_traced_memory()[1] / size)
"""
    output = run(script)
    # One copy together, and the `bytes` that `encode` returns to Python.
    assert float(output) < 2.1


class Money:
    def __init__(self, amount: int, note: bytes = b"") -> None:
        self.amount, self.note = amount, note

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and (self.amount, self.note) == (other.amount, other.note)

    __hash__ = None  # type: ignore[assignment]


class Price(Money):
    pass


@pytest.fixture(autouse=True)
def _unchanged_settings() -> Iterator[None]:
    yield
    _converters._registered.clear()
    _converters._known.clear()
    _markers.unserializable_markers(None)


class _Shop:
    @tool
    def double(self, price: Money) -> Money:
        return Money(price.amount * 2, price.note)


class _Any:
    @tool
    def any(self, price: Any) -> Any:
        return [price]


def test_a_registered_converter_applies_to_its_class_and_subclasses() -> None:
    with pytest.raises(
        InvalidTypeError, match=r"argument `price`.*register a converter with snakepit_bridge\.converter"
    ):
        call_tool(_Any, "any", price=Money(1))
    converter(
        Money,
        encode=lambda money: {"amount": money.amount, "note": money.note},
        decode=lambda form: Money(**form),
    )
    assert round_trip([Money(1, b"\xff"), Price(2)]) == [{"amount": 1, "note": b"\xff"}, {"amount": 2, "note": b""}]
    assert call_tool(_Shop, "double", price=Money(2, b"\xff")) == {"amount": 4, "note": b"\xff"}
    assert call_tool(_Any, "any", price=Money(1)) == [{"amount": 1, "note": b""}]
    with pytest.raises(snakepit_bridge.InvalidArgumentError, match=r"`price` .*is invalid as a"):
        call_tool(_Shop, "double", price={"sum": 1})


def test_a_converter_registers_functions_by_decorators() -> None:
    money = converter(Money)
    with pytest.raises(TypeError, match=r"has no `encode`"):
        round_trip(Money(1))

    @money.encode
    def _(value: Money) -> int:
        return value.amount

    @money.decode
    def _(form: int) -> Money:
        return Money(form)

    assert round_trip({"a": Money(3)}) == {"a": 3}
    assert money.read(3) == Money(3)

    @converter(Price)
    class PriceForm:
        @staticmethod
        def encode(value: Price) -> str:
            return f"{value.amount} EUR"

    assert round_trip([Price(3), Money(3)]) == ["3 EUR", 3]
    assert PriceForm.encode(Price(1)) == "1 EUR"
    for bad in (dict, 5):
        with pytest.raises(TypeError, match=r"needs no converter|expected a class"):
            converter(bad)  # type: ignore[arg-type]


def test_a_converter_that_another_thread_registers_during_a_lookup_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    find = _converters._find

    def find_slowly(cls: type) -> Any:
        found = find(cls)
        registration = threading.Thread(target=lambda: converter(Money, encode=lambda money: money.amount))
        registration.start()
        registration.join()
        return found

    monkeypatch.setattr(_converters, "_find", find_slowly)
    assert _converters.encode(Money(1)) is NotImplemented
    monkeypatch.setattr(_converters, "_find", find)
    assert _converters.encode(Money(1)) == 1


class Opaque:
    def __repr__(self) -> str:
        return "Opaque(password='hunter2', url=postgres://user:pw@host, key=sk-abcdefgh12345678)" + "x" * 1000


def test_values_without_a_wire_form_become_markers_if_enabled() -> None:
    with pytest.raises(TypeError, match=r"the value\['a'\]\[0\] is a `.*Opaque`, which has no wire form; return"):
        round_trip({"a": [Opaque()]})
    snakepit_bridge.unserializable_markers("none")
    assert round_trip({"a": [Opaque()]}) == {"a": [{"__snakepit_unserializable__": True}]}
    snakepit_bridge.unserializable_markers("type")
    name = f"{__name__}.Opaque"
    assert round_trip(Opaque()) == {"__snakepit_unserializable__": True, "__type__": name}
    snakepit_bridge.unserializable_markers("repr", max_length=120, redact=lambda text: text.replace("user", "?"))
    text = round_trip(Opaque())["__repr__"]
    assert len(text) == 120
    assert text.startswith("Opaque(password=<redacted>, url=postgres://?:<redacted>@host, key=<redacted>)xxx")
    with pytest.raises(ValueError, match="'none', 'type', 'repr' or None"):
        snakepit_bridge.unserializable_markers("all")  # type: ignore[arg-type]


class Represented:
    def __init__(self, text: str | type[Exception]) -> None:
        self.text = text

    def __repr__(self) -> str:
        if not isinstance(self.text, str):
            raise self.text("secret")
        return self.text


class _NamelessMeta(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise RuntimeError


class Nameless(metaclass=_NamelessMeta):
    pass


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x" * 121, "x" * 117 + "..."),
        ("x" * 120, "x" * 120),
        ("http://host:8080", "http://host:8080"),
        (ValueError, "<no representation: ValueError>"),
        (RecursionError, "<no representation: RecursionError>"),
        (MemoryError, "<no representation: MemoryError>"),
    ],
)
def test_a_representation_is_bounded(text: Any, expected: str) -> None:
    snakepit_bridge.unserializable_markers("repr", max_length=120)
    assert round_trip(Represented(text))["__repr__"] == expected


@pytest.mark.parametrize("secret", ["sk-SECRETSECRET", "bearer SECRETSECRET", "http://user:SECRETSECRET@host"])
def test_a_secret_is_not_shown_in_part(secret: str) -> None:
    snakepit_bridge.unserializable_markers("repr", max_length=120)
    # Redaction of the first secret makes room for the end of the text that is read.
    before, end = "password=", " " + "y " * 40
    for shown in range(len(secret)):
        text = before + "x" * (120 + _markers._MARGIN - len(before + end) - shown) + end + secret + "z" * 9000
        found = round_trip(Represented(text))["__repr__"]
        assert found.startswith("password=<redacted> y y")
        assert "SEC" not in found


def test_a_long_representation_costs_only_its_own_text() -> None:
    seen: list[int] = []

    def redact(text: str) -> str:
        seen.append(len(text))
        return text

    snakepit_bridge.unserializable_markers("repr", redact=redact)
    # Redaction of all of it would take seconds.
    assert len(round_trip(Represented("password='" * 10_000_000))["__repr__"]) <= 500
    assert max(seen) < 10_000
    assert round_trip(Nameless())["__type__"] == "Nameless"


def test_the_environment_enables_markers() -> None:
    script = "from snakepit_bridge import _native; print(_native.encode([object()], 'v')[1].decode())"
    output = run(script, SNAKEPIT_UNSERIALIZABLE="type")
    assert json.loads(output) == [{"__snakepit_unserializable__": True, "__type__": "builtins.object"}]


def test_a_value_above_the_limit_is_refused_with_both_numbers() -> None:
    script = """
from snakepit_bridge import _native
print(_native.encode([b"x" * 800], "v")[0])
def argument(value):
    _native.encode(value, "argument `a`", is_argument=True)
def program(value):
    _native.to_program(value, "program `p`")
for convert in (argument, program):
    try:
        convert([b"x" * 1000])
    except ValueError as error:
        print(error)
"""
    output = run(script, SNAKEPIT_MAX_VALUE_BYTES="1000")
    kind, argument, program = output.splitlines()
    assert kind == "list"
    assert argument.startswith(
        "argument `a` has 1086 bytes, the limit is 1000; pass a smaller value or the path of a file"
    )
    assert program.startswith("program `p` has 1051 bytes, the limit is 1000; store a smaller value"), program
    assert argument.endswith("raise SNAKEPIT_MAX_VALUE_BYTES, which may be up to 104792064")


def test_writing_a_small_object_that_stands_for_a_huge_value_stops() -> None:
    script = """
import resource
import numpy as np
from snakepit_bridge import _native
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
shared = [1]
for _ in range(8):
    shared = [shared] * 100
values = {
    "range": range(10**9),
    "shared lists": shared,
    "shared map": {"a": {"b": shared}},
    "one array many times": [np.zeros(500_000)] * 500,
    "numbers": np.broadcast_to(0.0, (10**10,)),
    "inner numbers": [np.broadcast_to(0.0, (10**10,))],
    "other byte order": [np.broadcast_to(np.array(0.0, ">f8"), (10**10,))],
    "texts": [np.broadcast_to("x", (10**10,))],
    "strided memory": [memoryview(np.broadcast_to(np.uint8(0), (10**10,)))],
}
for name, value in values.items():
    try:
        _native.encode(value, "the result")
    except ValueError as error:
        print(name, error)
"""
    lines = run(script, SNAKEPIT_MAX_VALUE_BYTES="1000000").splitlines()
    assert len(lines) == 9, lines
    for line in lines:
        assert " the result has at least " in line, line
        assert "bytes, the limit is 1000000; return a smaller value" in line, line


class Boaster(np.ndarray):
    """Claims to be much larger than it is."""

    @property  # type: ignore[misc]
    def shape(self) -> tuple[int, ...]:
        return (10**9, 10**9)


def test_arrays_of_subclasses_have_their_real_shape() -> None:
    array = np.arange(4.0).view(Boaster)
    for value in (array, [array]):
        decoded = _native.decode(*_native.encode(value, "the result"))
        np.testing.assert_array_equal(decoded if value is array else decoded[0], np.arange(4.0))


def test_plain_values_import_nothing() -> None:
    script = """
import sys
import snakepit_bridge
from snakepit_bridge import _native
_native.decode(*_native.encode({"a": [1, b"x", 2.5]}, "v"))
modules = ("_converters", "_packages", "_markers", "_encoded")
print([name for name in modules if f"snakepit_bridge.{name}" in sys.modules])
"""
    output = run(script)
    assert output.strip() == "[]"


def test_encoded_bytes_keep_their_format() -> None:
    table = Encoded(b"...", "arrow", "pandas.DataFrame")
    for copy in (round_trip(table), round_trip([table])[0], pickle.loads(pickle.dumps(table))):  # noqa: S301
        assert (copy, copy.format, copy.class_name) == (b"...", "arrow", "pandas.DataFrame")
    with pytest.raises(ValueError, match="bytes of format `x` are a `unknown class`"):
        Encoded(b"", "x").load()


def test_tables_convert_by_hint() -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pl = pytest.importorskip("polars")

    def total(self: Any, table: Any) -> Any:
        return table["a"].sum()

    def grow(self: Any, table: Any) -> Any:
        return table * 2

    for frame_type in (pd.DataFrame, pl.DataFrame):
        total.__annotations__ = {"table": frame_type, "return": Any}
        grow.__annotations__ = {"table": pd.DataFrame, "return": pd.DataFrame}
        cls = type("Made", (), {"total": tool(total), "grow": tool(grow)})
        tester = ToolTester(cls)
        for sent_value in (
            pd.DataFrame({"a": [1, 2]}),
            pl.DataFrame({"a": [1, 2]}),
            {"a": [1, 2]},
            [{"a": 1}, {"a": 2}],
        ):
            assert tester.call("total", table=sent_value) == 3
        grown = tester.call("grow", table=pd.DataFrame({"a": [1, 2]}, index=[5, 6])).load()
        assert grown.to_dict() == {"a": {5: 2, 6: 4}}
        with pytest.raises(snakepit_bridge.InvalidArgumentError, match=r"`table` .*DataFrame"):
            tester.call("total", table="x")


def test_a_subclass_of_a_table_may_reject_it() -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")

    class Prices(pd.DataFrame):  # type: ignore[misc, name-defined]
        def __init__(self, table: Any) -> None:
            super().__init__(table)
            if "price" not in self.columns:
                raise KeyError("no column `price`")

    def total(self: Any, table: Any) -> float:
        return float(table["price"].sum())

    total.__annotations__["table"] = Prices
    tester = ToolTester(type("Made", (), {"total": tool(total)}))
    assert tester.call("total", table=pd.DataFrame({"price": [1.5]})) == 1.5
    with pytest.raises(snakepit_bridge.InvalidArgumentError, match="no column `price`"):
        tester.call("total", table=pd.DataFrame({"a": [1]}))


def test_images_convert_by_hint() -> None:
    image_module = pytest.importorskip("PIL.Image")

    def flip(self: Any, image: Any) -> Any:
        return image.rotate(180)

    flip.__annotations__ = {"image": image_module.Image, "return": image_module.Image}
    tester = ToolTester(type("Made", (), {"flip": tool(flip)}))
    image = image_module.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    png = bytes(round_trip(image))
    for sent_value in (image, png, b64encode(png).decode(), np.asarray(image)):
        flipped = tester.call("flip", image=sent_value).load()
        assert flipped.getpixel((1, 0)) == (255, 0, 0)
    with pytest.raises(snakepit_bridge.InvalidArgumentError, match="cannot be converted to a `PIL"):
        tester.call("flip", image=b"not an image")
