"""Tools with hints, run as a worker runs them: arguments are converted before the tool, and results after it."""

from __future__ import annotations

import enum
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Annotated, Any, TypeVar

import annotated_types
import numpy as np
import numpy.typing as npt
import pydantic
import pytest

from snakepit_bridge import BaseAdapter, InvalidArgumentError, StreamChunk, tool
from snakepit_bridge.testing import ToolFailed, call_tool, stream_tool

_F = TypeVar("_F", bound=Callable[..., Any])


class Color(enum.Enum):
    RED = "red"


@dataclass
class Item:
    name: str
    price: float
    due: date | None = None


class Basket(pydantic.BaseModel):
    items: list[str]


def traced(function: _F) -> _F:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def scaled(value: Decimal, factor: int) -> Decimal:
    return value * factor


class Doubled:
    """A callable object."""

    def __call__(self, value: Color) -> list[Color]:
        return [value, value]


class Shop(BaseAdapter):
    @tool
    def total(self, items: list[Item], factor: float = 1.0, rest: tuple[int, ...] = ()) -> Decimal:
        assert all(isinstance(item, Item) for item in items)
        assert isinstance(factor, float)
        return Decimal(str(sum(item.price for item in items) * factor)) + sum(rest)

    @tool
    def later(self, item: Item, by: timedelta) -> Item:
        assert item.due is not None
        return Item(item.name, item.price, item.due + by)

    @tool
    def paint(self, color: Color | None = None) -> dict[Color, int]:
        return {} if color is None else {color: 1}

    @tool
    def basket(self, basket: Basket) -> Basket:
        return basket

    @tool
    def scale(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        assert values.dtype == np.float32
        return values * np.float32(2)

    @tool
    def others(self, first: int, **rest: date) -> list[str]:
        return sorted(f"{name}={value:%d}" for name, value in rest.items())

    @tool
    def field(self, count: int = pydantic.Field(default=3, le=9)) -> int:
        return count

    @tool
    @traced
    def wrapped(self, color: Color) -> str:
        return color.name

    @classmethod
    @tool
    def on_class(cls, color: Color) -> str:
        return color.name

    @staticmethod
    @tool
    def static(color: Color) -> str:
        return color.name

    partial = staticmethod(tool(functools.partial(scaled, factor=2)))
    callable = tool(Doubled())

    @tool
    async def waits(self, color: Color) -> Color:
        return color

    @tool
    def awaitable(self, color: Color) -> Awaitable[Color]:
        return self.waits(color)

    @tool
    def wrong(self, value: Any) -> list[Item]:
        return value  # type: ignore[no-any-return]

    @tool
    def wrong_number(self, value: Any) -> float:
        return value  # type: ignore[no-any-return]

    @tool
    def untyped(self, value):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        return value

    @tool
    def items(self, names: Sequence[str]) -> Iterator[Item]:
        for name in names:
            yield Item(name, 1)

    @tool
    async def items_async(self, names: Sequence[str]) -> AsyncIterator[Item]:
        for name in names:
            yield Item(name, 1)

    @tool
    def numbers(self, values: list[Any]) -> Generator[float, None, None]:
        yield from values

    @tool
    def marked(self) -> Iterator[Decimal]:
        yield StreamChunk(Decimal("1.5"), metadata={"a": "b"})  # type: ignore[misc]

    @tool
    def iterates(self, values: list[Any]) -> Iterator[int]:
        return iter(values)

    @tool
    def lists(self, values: list[Any]) -> Iterable[int]:
        return values

    @tool
    def fails(self, item: Annotated[int, annotated_types.Predicate(lambda value: 1 / value)]) -> None: ...


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("total", {"items": [{"name": "a", "price": 2}], "factor": 2, "rest": [1.0]}, "5.0"),
        ("total", {"items": []}, "0.0"),
        (
            "later",
            {"item": {"name": "a", "price": 1, "due": "2026-11-30"}, "by": "P1D"},
            {"name": "a", "price": 1.0, "due": "2026-12-01"},
        ),
        ("paint", {}, {}),
        ("paint", {"color": None}, {}),
        ("paint", {"color": "red"}, {"red": 1}),
        ("basket", {"basket": {"items": ["a"]}}, {"items": ["a"]}),
        ("others", {"first": 1, "a": "2026-11-30", "b": "2026-11-29"}, ["a=30", "b=29"]),
        ("field", {}, 3),
        ("field", {"count": 4.0}, 4),
        ("wrapped", {"color": "red"}, "RED"),
        ("on_class", {"color": "red"}, "RED"),
        ("static", {"color": "red"}, "RED"),
        ("partial", {"value": 1.5}, "3.0"),
        ("callable", {"value": "red"}, ["red", "red"]),
        ("waits", {"color": "red"}, "red"),
        ("awaitable", {"color": "red"}, "red"),
        ("wrong_number", {"value": 5}, 5.0),
        ("untyped", {"value": [1]}, [1]),
        ("lists", {"values": [1, 2.0]}, [1, 2]),
    ],
)
def test_arguments_and_results_are_converted(name: str, arguments: dict[str, Any], result: Any) -> None:
    got = call_tool(Shop, name, arguments)
    assert got == result
    assert type(got) is type(result)


def test_arrays_have_the_declared_type() -> None:
    for values in ([1, 2], np.array([1.0, 2.0])):
        got = call_tool(Shop, "scale", values=values)
        assert got.dtype == np.float32
        assert got.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "total",
            {"items": [{"name": "a", "price": 1}, {"name": 1, "prize": 2}], "rest": ["x"]},
            "argument `items[1].name` of tool `total` is an integer, expected string, `items[1].price` is missing, "
            "`items[1].prize` is unknown (did you mean `price`?), and `rest[0]` is a string, expected integer",
        ),
        ("paint", {"color": "blue"}, "argument `color` of tool `paint` is 'blue', expected 'red'"),
        (
            "basket",
            {"basket": {"items": [1]}},
            "argument `basket.items[0]` of tool `basket` is invalid: Input should be a valid string",
        ),
        (
            "scale",
            {"values": [1e300]},
            "argument `values[0]` of tool `scale` is 1e+300, above 3.4028235e+38, the maximum of float32",
        ),
        ("others", {"first": 1, "a": "x"}, "argument `a` of tool `others` is 'x', expected a date such as 2026-11-30"),
        ("field", {"count": 10}, "argument `count` of tool `field` is 10, above maximum 9"),
        ("items", {"names": [1]}, "argument `names[0]` of tool `items` is an integer, expected string"),
    ],
)
def test_wrong_arguments_never_reach_the_tool(name: str, arguments: dict[str, Any], message: str) -> None:
    call = stream_tool if name == "items" else call_tool
    with pytest.raises(InvalidArgumentError) as caught:
        call(Shop, name, arguments)
    assert str(caught.value) == message
    assert not caught.value.may_have_run


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("wrong", [{"name": "a"}], "the result of tool `wrong`[0] is a map, expected a `test_contracts.Item`"),
        ("wrong", {}, "the result of tool `wrong` is a map, expected list"),
        ("wrong_number", "x", "the result of tool `wrong_number` is a string, expected float"),
        ("wrong_number", True, "the result of tool `wrong_number` is a boolean, expected float"),
    ],
)
def test_a_result_that_contradicts_its_hint_is_an_error_of_the_tool(name: str, value: Any, message: str) -> None:
    with pytest.raises(ToolFailed) as caught:
        call_tool(Shop, name, value=value)
    assert (caught.value.type, caught.value.message) == ("TypeError", message)


@pytest.mark.parametrize("name", ["items", "items_async"])
def test_items_of_streams_are_written_by_their_hint(name: str) -> None:
    assert stream_tool(Shop, name, names=["a", "b"]) == [
        {"name": "a", "price": 1.0, "due": None},
        {"name": "b", "price": 1.0, "due": None},
    ]


def test_chunks_follow_the_hint_of_the_items() -> None:
    assert stream_tool(Shop, "marked") == ["1.5"]
    assert stream_tool(Shop, "numbers", values=[1, 0.5]) == [1.0, 0.5]
    with pytest.raises(ToolFailed) as caught:
        stream_tool(Shop, "numbers", values=[1, "x"])
    assert caught.value.message == "chunk 2 of tool `numbers` is a string, expected float"


def test_a_function_that_returns_an_iterator_streams() -> None:
    assert stream_tool(Shop, "iterates", values=[1, 2]) == [1, 2]
    with pytest.raises(ToolFailed, match="chunk 1 of tool `iterates` is a string, expected integer"):
        stream_tool(Shop, "iterates", values=["a"])


def test_other_exceptions_of_converters_are_failures_of_the_tool() -> None:
    with pytest.raises(ToolFailed) as caught:
        call_tool(Shop, "fails", item=0)
    assert caught.value.type == "ZeroDivisionError"


class Mappings(BaseAdapter):
    @tool
    def mapping(self, values: Mapping[str, float]) -> Mapping[str, float]:
        return values


def test_abstract_types_work_in_both_directions() -> None:
    assert call_tool(Mappings, "mapping", values={"a": 1}) == {"a": 1.0}


class Opaque:
    """A class that neither pydantic nor the runtime knows."""


class Frame(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    name: str
    pixels: np.ndarray
    opaque: Opaque | None = None


class Frames(BaseAdapter):
    @tool
    def invert(self, frame: Frame) -> Frame:
        assert isinstance(frame, Frame)
        return Frame(name=frame.name, pixels=255 - frame.pixels)


def test_a_model_may_have_a_field_of_an_arbitrary_type() -> None:
    pixels = np.array([[0, 255]], dtype=np.uint8)
    found = call_tool(Frames, "invert", frame={"name": "a", "pixels": pixels})
    assert (found["name"], found["opaque"]) == ("a", None)
    assert found["pixels"].tolist() == [[255, 0]]
    with pytest.raises(InvalidArgumentError, match=r"`frame\.pixels` of tool .* should be an instance of ndarray"):
        call_tool(Frames, "invert", frame={"name": "a", "pixels": "b"})
