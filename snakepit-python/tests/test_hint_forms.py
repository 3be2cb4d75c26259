"""Every form of `typing` either converts values, or prevents the start with an error that names the hint to use."""

# ruff: noqa: RUF020, RUF041, UP006, UP035, UP044  Older forms are supported, too.

from __future__ import annotations

import enum
import functools
import io
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Container,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import GenericAlias
from typing import (
    IO,
    Annotated,
    Any,
    ClassVar,
    Concatenate,
    Final,
    ForwardRef,
    Generic,
    Literal,
    LiteralString,
    NamedTuple,
    Never,
    NewType,
    NoReturn,
    NotRequired,
    Optional,
    ParamSpec,
    ParamSpecKwargs,
    Protocol,
    Required,
    Self,
    TextIO,
    Tuple,
    Type,
    TypedDict,
    TypeGuard,
    TypeVar,
    TypeVarTuple,
    Unpack,
    overload,
)

import pytest
import typing_extensions
from typing_extensions import ReadOnly, TypeAliasType, TypeIs

from snakepit_bridge import BaseAdapter, tool
from snakepit_bridge._event_loop import EventLoop
from snakepit_bridge._plan import AdapterError, plan_of
from snakepit_bridge.testing import ToolFailed, call_tool, stream_tool

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
Bound = TypeVar("Bound", bound=float)
Either = TypeVar("Either", int, str)
Defaulted = typing_extensions.TypeVar("Defaulted", default=int)
Ts = TypeVarTuple("Ts")
P = ParamSpec("P")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Box(Generic[T]):
    value: T


@dataclass
class IntBox(Box[int]):
    more: float


@dataclass
class Shelf(Box[list[T]], Generic[T]):
    other: T


@dataclass
class Pair(Generic[T, U]):
    left: Box[T]
    right: Box[U]


@dataclass
class Swapped(Pair[U, T], Generic[T, U]):
    own: T


@dataclass
class Tree(Generic[T]):
    value: T
    children: list[Tree[T]]


@dataclass
class Node:
    value: Final[int]
    next: Self | None = None
    kind: ClassVar[str] = "node"
    free: Final = 3


@dataclass
class Defaults(Generic[Defaulted]):
    value: Defaulted


@dataclass
class Many(Generic[K, Unpack[Ts]]):
    key: K
    values: tuple[Unpack[Ts]]


class Page(TypedDict, Generic[T]):
    items: list[T]
    number: NotRequired[int]


class Book(TypedDict, total=False):
    title: Required[ReadOnly[str]]
    page: Page[float]
    year: Annotated[NotRequired[int], "of the first print"]


class Row(NamedTuple, Generic[T]):
    key: T
    value: int = 0


@dataclass
class Endless(Generic[T]):
    inner: Endless[list[T]] | None = None


class Shape(Protocol):
    sides: int


UserId = NewType("UserId", int)
Users = NewType("Users", list[UserId])
Json = TypeAliasType("Json", "dict[str, Json] | list[Json] | int | None")
Ints = TypeAliasType("Ints", Iterator[int])
Same = TypeAliasType("Same", T, type_params=(T,))
Nested = TypeAliasType("Nested", "T | list[Nested[T]]", type_params=(T,))
Two = TypeAliasType("Two", tuple[int, float])
Missing = TypeAliasType("Missing", "NotThere")  # type: ignore[name-defined]  # noqa: F821
HERE = globals()

#: Hint, JSON value, and the representation of the value that the tool receives.
CONVERTED: list[tuple[Any, Any, str]] = [
    (Literal[Color.RED, "b", None], "red", "<Color.RED: 'red'>"),
    (Literal[Color.RED, "b", None], None, "None"),
    (Literal[1, Literal[2, Literal[3]]], 3.0, "3"),
    (list[Annotated[int, "a"]] | None, [1.0], "[1]"),
    (dict[str, Annotated[list[Annotated[float, "b"]], "c"]], {"a": [1]}, "{'a': [1.0]}"),
    (Sequence[int], [1.0], "[1]"),
    (Mapping[str, int], {"a": 1.0}, "{'a': 1}"),
    (Iterable[int], [1.0], "[1]"),
    (AbstractSet[int], [1.0], "{1}"),
    (Final[int], 1.0, "1"),
    (ClassVar[int], 1.0, "1"),
    (Required[int], 1.0, "1"),
    (LiteralString, "a", "'a'"),
    (TypeGuard[int], True, "True"),
    (TypeIs[int], False, "False"),
    (ForwardRef("Color"), "red", "<Color.RED: 'red'>"),
    ("Color", "red", "<Color.RED: 'red'>"),
    (list["Color"], ["red"], "[<Color.RED: 'red'>]"),
    (Optional["Color"], "red", "<Color.RED: 'red'>"),
    (Bound, 1, "1.0"),
    (Either, 1.0, "1"),
    (T, 1.0, "1.0"),
    (Defaulted, 1.0, "1"),
    (UserId, 1.0, "1"),
    (Users, [1.0], "[1]"),
    (Json, {"a": [1.0, None]}, "{'a': [1, None]}"),
    (Same[int], 1.0, "1"),
    (Nested[int], [1.0, [2.0]], "[1, [2]]"),
    (Box[int], {"value": 1.0}, "Box(value=1)"),
    (Box[Box[int]], {"value": {"value": 1.0}}, "Box(value=Box(value=1))"),
    (Box, {"value": 1.0}, "Box(value=1.0)"),
    (IntBox, {"value": 1.0, "more": 1}, "IntBox(value=1, more=1.0)"),
    (Shelf[int], {"value": [1.0], "other": 2.0}, "Shelf(value=[1], other=2)"),
    (
        tuple[Pair[int, float], Pair[float, int]],
        [{"left": {"value": 1.0}, "right": {"value": 2}}, {"left": {"value": 1}, "right": {"value": 2.0}}],
        "(Pair(left=Box(value=1), right=Box(value=2.0)), Pair(left=Box(value=1.0), right=Box(value=2)))",
    ),
    (
        Swapped[int, float],
        {"left": {"value": 1}, "right": {"value": 2.0}, "own": 3.0},
        "Swapped(left=Box(value=1.0), right=Box(value=2), own=3)",
    ),
    (
        Tree[int],
        {"value": 1.0, "children": [{"value": 2.0, "children": []}]},
        "Tree(value=1, children=[Tree(value=2, children=[])])",
    ),
    (Node, {"value": 1.0, "next": {"value": 2.0}}, "Node(value=1, next=Node(value=2, next=None, free=3), free=3)"),
    (Defaults, {"value": 1.0}, "Defaults(value=1)"),
    (Defaults[float], {"value": 1}, "Defaults(value=1.0)"),
    (Many[str, int, float], {"key": "a", "values": [1.0, 2]}, "Many(key='a', values=(1, 2.0))"),
    (Page[int], {"items": [1.0]}, "{'items': [1]}"),
    (
        Book,
        {"title": "a", "page": {"items": [1], "number": 2.0}},
        "{'title': 'a', 'page': {'items': [1.0], 'number': 2}}",
    ),
    (Row[float], [1, 2.0], "Row(key=1.0, value=2)"),
    (tuple[int, Unpack[tuple[float, ...]]], [1.0, 2, 3], "(1, 2.0, 3.0)"),
    (tuple[int, Unpack[tuple[float, ...]], str], [1.0, 2, "a"], "(1, 2.0, 'a')"),
    (tuple[Unpack[tuple[int, float]], str], [1.0, 2, "a"], "(1, 2.0, 'a')"),
    (tuple[str, Unpack[Two]], ["a", 1.0, 2], "('a', 1, 2.0)"),
    (Tuple[int, Unpack[Tuple[float, ...]]], [1.0], "(1,)"),
    ("tuple[int, *tuple[float, ...]]", [1.0, 2], "(1, 2.0)"),
    (tuple[int, Unpack[Ts]], [1.0, "a"], "(1, 'a')"),  # type: ignore[valid-type]
    (int | NoReturn, 1.0, "1"),
]


def adapter_with(parameter: Any = Any, result: Any = Any) -> type[BaseAdapter]:
    class Adapter(BaseAdapter):
        @tool
        def use(self, value: Any) -> Any:
            seen.append(value)
            return value

        use.__annotations__.update({"value": parameter, "return": result})

    return Adapter


seen: list[Any] = []


@pytest.mark.parametrize(("hint", "value", "expected"), CONVERTED, ids=lambda part: str(part)[:60])
def test_a_form_converts_arguments_and_results(hint: Any, value: Any, expected: str) -> None:
    seen.clear()
    written = call_tool(adapter_with(hint, hint), "use", value=value)
    assert repr(seen[0]) == expected
    # Its own form is a valid argument, too.
    assert call_tool(adapter_with(hint, hint), "use", value=written) == written


NAME = "pass its name, for example as a `Literal`"
#: Hint, and a part of the error.
UNSUPPORTED: list[tuple[Any, str]] = [
    (Never, "is `typing.Never`, which no value has"),
    (list[NoReturn], "is `typing.NoReturn`, which no value has"),
    (Self, "is `typing.Self`, which is only the class of a field; name the class"),
    (ClassVar, "is `typing.ClassVar`, which needs a type; use `ClassVar[..]`"),
    (Required, "which needs a type; use `Required[..]`"),
    (type[int], f"is `type[int]`, which has no JSON form; {NAME}"),
    (Type, f"which has no JSON form; {NAME}"),
    (Callable[[int], int], f"which has no JSON form; {NAME}"),
    (Callable, f"which has no JSON form; {NAME}"),
    (Iterator[int], "which only has a meaning as the whole hint of a result; use `list[int]`"),
    (list[Generator[int, None, None]], "as the whole hint of a result; use `list[int]`"),
    (AsyncIterator[int] | None, "as the whole hint of a result; use `list[int]`"),
    (Awaitable[int] | None, "as the whole hint of a result; use `list[int]`"),
    (Container[int], "which has no JSON form; use a concrete type, such as `list` or `dict`"),
    (Shape, "which has no JSON form; use a class that implements it"),
    (re.Pattern[str], "which has no JSON form; use `str`, and compile it in the tool"),
    (TextIO, "which has no JSON form; use `bytes`, or the `Path` of a file"),
    (IO[bytes], "use `bytes`, or the `Path` of a file"),
    (io.BytesIO, "use `bytes`, or the `Path` of a file"),
    (Literal[b"a"], "has the choice b'a', which has no JSON form; use strings, numbers, booleans or None"),
    (Concatenate[int, ...], "which has no JSON form; use a type"),
    (..., "is `Ellipsis`, which has no JSON form; use a type"),
    (5, "is `5`, which is a value; use a type, or `Literal[..]` for a choice of values"),
    ([int], "which is a value; use a type, or `Literal[..]` for a choice of values"),
    (ParamSpecKwargs(P), "is `P.kwargs`, which stands for the parameters of another function"),  # type: ignore[arg-type]
    (tuple[Unpack[list[int]]], "unpacks `list[int]`, which is not a tuple"),  # type: ignore[valid-type]
    (
        tuple[Unpack[tuple[int, ...]], Unpack[tuple[str, ...]]],  # type: ignore[misc]
        "which has several parts of any length; keep one of them",
    ),
    (Unpack[tuple[int, ...]], "which only has a meaning inside of `tuple[..]`; use `tuple` or `list`"),
    (complex, "is `complex`, which has no JSON form; register a converter with snakepit_bridge.converter(complex)"),
    (Missing, "is `NotThere`, which cannot be evaluated: name 'NotThere' is not defined"),
    (Endless[int], "whose classes are nested too deeply"),
    (list["NotThere"], "is `NotThere`, which cannot be evaluated: name 'NotThere' is not defined"),  # type: ignore[name-defined]  # noqa: F821
]


@pytest.mark.parametrize(("hint", "needle"), UNSUPPORTED, ids=lambda part: str(part)[:60])
def test_other_forms_prevent_the_start_with_advice(hint: Any, needle: str) -> None:
    # Whole results may be streams.
    nested = GenericAlias(dict, (str, hint))
    adapters = {"parameter `value`": adapter_with(hint), "the result": adapter_with(result=nested)}
    for owner, adapter in adapters.items():
        with pytest.raises(AdapterError) as caught:
            plan_of(adapter, EventLoop())
        assert f"the hint of {owner} of tool `" in str(caught.value)
        assert "adapter_with.<locals>.Adapter.use`" in str(caught.value)
        assert needle in str(caught.value)


def wrapped(function: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    return wrapper


class Forms(BaseAdapter):
    @tool
    def never(self) -> Never:
        raise ValueError("always")

    @tool
    async def never_async(self) -> NoReturn:
        raise ValueError("always")

    @tool
    def never_awaitable(self) -> Awaitable[NoReturn]:
        return self.never_async()

    @tool
    def never_annotated(self) -> Annotated[NoReturn, "a note"]:
        raise ValueError("always")

    @tool
    def never_items(self) -> Iterator[NoReturn]:
        raise ValueError("always")
        yield

    @tool
    def coroutine(self) -> Coroutine[Any, Any, int]:
        async def made() -> int:
            return 5.0  # type: ignore[return-value]

        return made()

    @overload
    def overloaded(self, value: int) -> int: ...
    @overload
    def overloaded(self, value: str) -> str: ...
    @tool
    def overloaded(self, value: int | str) -> int | str:
        return value

    @tool
    @wrapped
    def specified(self, value: Color) -> Color:
        assert value is Color.RED
        return value

    @tool
    def variable(self, value: Bound, others: list[Bound]) -> Bound:
        assert isinstance(value, float)
        assert all(isinstance(other, float) for other in others)
        return value

    @tool
    def aliased(self) -> Ints:
        yield from (1.0, 2)  # type: ignore[misc]

    @tool
    def annotated(self) -> Annotated[Iterator[int], "a note"]:
        yield from (1.0, 2)  # type: ignore[misc]

    @tool
    def bare(self) -> Generator:  # type: ignore[type-arg]
        yield from (1, 2)

    @tool
    async def generator(self) -> AsyncGenerator[int, None]:
        yield 1.0  # type: ignore[misc]
        yield 2

    @tool
    def iterator(self) -> AsyncIterator[int]:
        return self.generator()


@pytest.mark.parametrize("name", ["never", "never_async", "never_awaitable", "never_annotated", "never_items"])
def test_a_tool_may_always_raise(name: str) -> None:
    with pytest.raises(ToolFailed, match="always"):
        (stream_tool if name == "never_items" else call_tool)(Forms, name)


def test_functions_of_all_forms_are_tools() -> None:
    assert call_tool(Forms, "coroutine") == 5
    assert [call_tool(Forms, "overloaded", value=value) for value in ("5", 5.0)] == ["5", 5]
    assert call_tool(Forms, "specified", value="red") == "red"
    assert call_tool(Forms, "variable", value=1, others=[2]) == 1.0
    for name in ("aliased", "annotated", "bare", "generator", "iterator"):
        assert stream_tool(Forms, name) == [1, 2]


@pytest.mark.parametrize(
    ("result", "fix"),
    [
        ("list[int]", "write `Iterator[list[int]]`"),
        ("Iterator[int] | None", "write `collections.abc.Iterator[int]`"),
        ("Self", "is `typing.Self`, but the tool yields; write `Iterator[typing.Self]`"),
    ],
)
def test_a_generator_needs_the_hint_of_a_stream(result: str, fix: str) -> None:
    def generator(self: Any) -> Any:
        yield self

    generator.__annotations__["return"] = result
    broken = type("Broken", (BaseAdapter,), {"use": tool(generator)})
    with pytest.raises(AdapterError) as caught:
        plan_of(broken, EventLoop())
    assert fix in str(caught.value)
