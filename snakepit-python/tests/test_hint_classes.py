"""Hints that are classes: dataclasses, attrs, msgspec structs, TypedDicts, named tuples and pydantic models."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, NotRequired, Required, TypedDict, TypeVar

import annotated_types
import attrs
import msgspec
import numpy as np
import pydantic
import pytest

from snakepit_bridge import BaseAdapter, _native, tool
from snakepit_bridge._hints.base import HintError, InvalidError
from snakepit_bridge._hints.compiler import Compiler
from snakepit_bridge.testing import call_tool

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"


@dataclass
class Item:
    name: str
    price: float
    count: Annotated[int, annotated_types.Ge(1)] = 1
    color: Color = Color.RED


@dataclass
class Order:
    items: list[Item]
    parent: Order | None = None
    notes: dict[str, list[int]] = field(default_factory=dict)
    kind: ClassVar[str] = "order"
    total: float = field(init=False, default=0)
    factor: InitVar[float] = 1

    def __post_init__(self, factor: float) -> None:
        if not self.items:
            raise ValueError("an order needs items")
        self.total = factor * sum(item.price * item.count for item in self.items)


@dataclass
class Box(Generic[T]):
    value: T


@dataclass
class Circle:
    radius: float
    kind: Literal["circle"] = "circle"


@dataclass
class Square:
    side: float
    kind: Literal["square"] = "square"


class Movie(TypedDict, total=False):
    title: Required[str]
    year: int
    tags: list[str]


class Sequel(Movie):
    number: int
    of: NotRequired[Movie]


class Point(NamedTuple):
    x: int
    y: float = 0.5


@attrs.define
class Account:
    owner: str
    _balance: float = attrs.field(default=0, validator=attrs.validators.ge(0))
    tags: list[str] = attrs.Factory(list)
    rate: float = attrs.field(default=0.5, converter=float)


class Cat(msgspec.Struct, tag=True, rename="camel"):
    full_name: str
    lives: Annotated[int, msgspec.Meta(ge=0, le=9)] = 9


class Dog(msgspec.Struct, tag=True):
    name: str
    friends: list[Cat | Dog] = []


class Model(pydantic.BaseModel):
    name: str
    sizes: list[int] = []
    child: Model | None = None
    alias: int = pydantic.Field(validation_alias="theAlias", serialization_alias="theAlias", default=1)

    @pydantic.field_validator("name")
    @classmethod
    def short(cls, name: str) -> str:
        if len(name) > 5:
            raise ValueError("the name is long")
        return name


@dataclass
class Holder:
    model: Model
    pets: list[Cat | Dog]
    point: Point


HERE = globals()
#: Hint, JSON value, the value of the tool, and the JSON form of the latter if it is another one.
ACCEPTED: list[tuple[Any, ...]] = [
    (Item, {"name": "tea", "price": 2}, Item("tea", 2.0), {"name": "tea", "price": 2.0, "count": 1, "color": "red"}),
    (
        Order,
        {"items": [{"name": "tea", "price": 2, "count": 3.0}], "parent": None, "notes": {"a": [1.0]}, "factor": 2},
        Order([Item("tea", 2.0, 3)], None, {"a": [1]}, 2.0),
        {
            "items": [{"name": "tea", "price": 2.0, "count": 3, "color": "red"}],
            "parent": None,
            "notes": {"a": [1]},
            "total": 12.0,
        },
    ),
    (Box[int], {"value": 5.0}, Box(5), {"value": 5}),
    (Box[list[Item]], {"value": []}, Box([])),
    (Circle | Square, {"side": 1, "kind": "square"}, Square(1.0), {"side": 1.0, "kind": "square"}),
    (Movie, {"title": "a", "year": 1999.0}, {"title": "a", "year": 1999}, {"title": "a", "year": 1999}),
    (Sequel, {"title": "b", "number": 2, "of": {"title": "a"}}, {"title": "b", "number": 2, "of": {"title": "a"}}),
    (Point, [1.0], Point(1), [1, 0.5]),
    (Point, [1, 2], Point(1, 2.0), [1, 2.0]),
    (
        Account,
        {"owner": "a", "balance": 5, "rate": "0.5"},
        Account("a", 5.0),
        {"owner": "a", "balance": 5.0, "tags": [], "rate": 0.5},
    ),
    (Cat, {"fullName": "a", "lives": 3.0}, Cat("a", 3), {"type": "Cat", "fullName": "a", "lives": 3}),
    (
        Cat | Dog,
        {"type": "Dog", "name": "b", "friends": [{"type": "Cat", "fullName": "a", "lives": 1}]},
        Dog("b", [Cat("a", 1)]),
    ),
    (
        Model,
        {"name": "a", "theAlias": 2},
        Model.model_validate({"name": "a", "theAlias": 2}),
        {"name": "a", "sizes": [], "child": None, "theAlias": 2},
    ),
    (list[Model], [{"name": "a", "sizes": [1.0]}], [Model(name="a", sizes=[1])], None),
    (
        Holder,
        {"model": {"name": "a"}, "pets": [{"type": "Dog", "name": "b"}], "point": [1, 2.5]},
        Holder(Model(name="a"), [Dog("b")], Point(1, 2.5)),
        None,
    ),
    (Annotated[int, pydantic.AfterValidator(abs)], -2, 2, 2),
    (Annotated[int, pydantic.Field(strict=True, ge=0)], 2, 2),
    (pydantic.Json[list[int]], "[1]", [1], None),
]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: f"{case[0]}-{case[1]}")
def test_classes_are_built_from_maps_and_written_as_maps(case: tuple[Any, ...]) -> None:
    annotation, json, value, *written = case
    hint = Compiler(HERE).top_level(annotation)
    got = hint.read(json)
    assert got == value
    assert type(got) is type(value)
    form = hint.write(value)
    expected = written[0] if written else json
    assert expected is None or form == expected


#: Hint, JSON value, and the problems by path.
REJECTED: list[tuple[Any, Any, dict[str, str]]] = [
    (Item, 5, {"": "is an integer, expected map of `Item`"}),
    (
        Item,
        {"price": "x", "count": 0, "colour": 1},
        {
            ".name": "is missing",
            ".price": "is a string, expected float",
            ".count": "is 0, below minimum 1",
            ".colour": "is unknown (did you mean `color`?)",
        },
    ),
    (
        Order,
        {
            "items": [{"name": "a", "price": 1}, {"name": 1}],
            "parent": {"items": [{"price": None, "name": "b"}]},
            "total": 1,
        },
        {
            ".items[1].name": "is an integer, expected string",
            ".items[1].price": "is missing",
            ".parent.items[0].price": "is a null, expected float",
        },
    ),
    (list[Order], [{"items": []}], {"[0]": "is invalid: an order needs items"}),
    (Item, {"name": "a", "price": 1, "a b": 1}, {"['a b']": "is unknown"}),
    (Box[int], {"value": "x"}, {".value": "is a string, expected integer"}),
    (Circle | Square, {"kind": "square"}, {".side": "is missing"}),
    (Circle | None, {"radius": "x"}, {".radius": "is a string, expected float"}),
    (Movie, {"year": "x"}, {".title": "is missing", ".year": "is a string, expected integer"}),
    (Movie, {"title": "a", "titel": "b"}, {".titel": "is unknown (did you mean `title`?)"}),
    (Sequel, {"title": "b", "of": {}}, {".number": "is missing", ".of.title": "is missing"}),
    (Point, [], {"": "has 0 items, expected 1 to 2"}),
    (Point, ["a", "b"], {"[0]": "is a string, expected integer", "[1]": "is a string, expected float"}),
    (Account, {"owner": "a", "balance": -1}, {"": "is invalid: '_balance' must be >= 0: -1.0"}),
    (Cat, {"fullName": "a", "lives": 10}, {".lives": "is 10, above maximum 9"}),
    (Cat, {"type": "Cow", "fullName": "a"}, {".type": "is 'Cow', expected 'Cat'"}),
    (Cat, {"full_name": "a"}, {".fullName": "is missing", ".full_name": "is unknown (did you mean `fullName`?)"}),
    (
        Annotated[Decimal, pydantic.Field(max_digits=2)],
        "1.23",
        {"": "is invalid: Decimal input should have no more than 2 digits in total"},
    ),
    (
        list[Model],
        [{"name": "a"}, {"sizes": ["x"], "child": {"name": "too long"}}],
        {
            "[1].name": "is missing",
            "[1].sizes[0]": "is invalid: Input should be a valid integer, unable to parse string as an integer",
            "[1].child.name": "is invalid: the name is long",
        },
    ),
]


@pytest.mark.parametrize("case", REJECTED, ids=lambda case: f"{case[0]}-{case[1]}")
def test_all_wrong_fields_are_named_by_path(case: tuple[Any, Any, dict[str, str]]) -> None:
    annotation, json, expected = case
    with pytest.raises(InvalidError) as caught:
        Compiler(HERE).top_level(annotation).read(json)
    assert dict(caught.value.problems) == expected


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Item, {"name": "a"}, {"": "is a map, expected a `test_hint_classes.Item`"}),
        (Item, Item("a", "x"), {".price": "is a string, expected float"}),  # type: ignore[arg-type]
        (list[Item], [Item("a", 1), Item("b", 1, 0)], {"[1].count": "is 0, below minimum 1"}),
        (Movie, {"year": 1, "b": 2}, {".title": "is missing", ".b": "is unknown"}),
        (Point, (1, 2), {"": "is a `tuple`, expected a `test_hint_classes.Point`"}),
        (Cat, Dog("a"), {"": "is a `test_hint_classes.Dog`, expected a `test_hint_classes.Cat`"}),
        (Model, {"name": "a"}, {"": "is a map, expected a `test_hint_classes.Model`"}),
    ],
)
def test_results_that_contradict_a_class(annotation: Any, value: Any, expected: dict[str, str]) -> None:
    with pytest.raises(InvalidError) as caught:
        Compiler(HERE).top_level(annotation).write(value)
    assert dict(caught.value.problems) == expected


def test_hints_of_a_class_are_evaluated_in_its_module() -> None:
    class Item:
        """Hides the class of the module."""

    order = Compiler({"Item": Item}).top_level(Order)
    assert order.read({"items": [{"name": "a", "price": 1}]}) == Order([globals()["Item"]("a", 1.0)])


def test_classes_inside_of_a_function_may_contain_each_other() -> None:
    @dataclass
    class Leaf:
        value: int

    @dataclass
    class Tree:
        leaves: list[Leaf]
        trees: list[Tree]

    hint = Compiler({"Leaf": Leaf}).top_level(Tree)
    value = {"leaves": [{"value": 1}], "trees": [{"leaves": [], "trees": []}]}
    assert hint.read(value) == Tree([Leaf(1)], [Tree([], [])])
    assert hint.write(hint.read(value)) == value


def test_an_exception_of_a_constructor_that_is_no_rejection_passes_through() -> None:
    @dataclass
    class Broken:
        value: int

        def __post_init__(self) -> None:
            raise LookupError("a bug")

    with pytest.raises(LookupError, match="a bug"):
        Compiler({"Broken": Broken}).top_level(Broken).read({"value": 1})


def test_a_class_with_an_unsupported_field_fails_the_start() -> None:
    @dataclass
    class Odd:
        value: complex

    class Unknown(TypedDict):
        value: NotThere  # type: ignore[name-defined]  # noqa: F821

    class Flat(msgspec.Struct, array_like=True):
        value: int

    class Odder(pydantic.BaseModel):
        value: Callable[[], int]

    for annotation, needle in [
        (Annotated[int, pydantic.Field(alias="a")], "has the alias 'a'; only fields of pydantic models have aliases"),
        (Odder, "is `Odder`, for which pydantic has no schema: Cannot generate a JsonSchema"),
        (Odd, "Odd.value`, which is `complex`, which has no JSON form"),
        (Unknown, "one of whose fields has a hint that cannot be evaluated: name 'NotThere' is not defined"),
        (Flat, "which is array-like; remove `array_like`"),
    ]:
        with pytest.raises(HintError) as caught:
            Compiler(HERE).top_level(annotation)
        assert needle in str(caught.value)


class Car(pydantic.BaseModel):
    kind: Literal["car"]
    doors: Annotated[int, pydantic.Field(ge=1)]


class Bike(pydantic.BaseModel):
    kind: Literal["bike"]


def test_the_discriminator_of_a_union_selects_its_member() -> None:
    hint = Compiler(HERE).top_level(Annotated[Car | Bike, pydantic.Field(discriminator="kind")])
    assert hint.read({"kind": "bike"}) == Bike(kind="bike")
    with pytest.raises(InvalidError) as caught:
        hint.read({"kind": "car", "doors": 0})
    assert [path for path, _ in caught.value.problems] == [".doors"]


def test_the_secret_of_a_model_is_not_replaced_by_asterisks() -> None:
    class Login(pydantic.BaseModel):
        password: pydantic.SecretStr

    class Open(Login):
        @pydantic.field_serializer("password")
        def reveal(self, value: pydantic.SecretStr) -> str:
            return value.get_secret_value()

    with pytest.raises(TypeError, match="contains a `SecretStr`, which pydantic hides"):
        _native.encode([Login(password=pydantic.SecretStr("hush"))], "argument `login`", is_argument=True)
    sent = _native.encode([Open(password=pydantic.SecretStr("hush"))], "argument `login`", is_argument=True)
    assert _native.decode(*sent) == [{"password": "hush"}]
    secret = pydantic.SecretStr("hush")
    for value in (Login(password=secret), secret):
        with pytest.raises(InvalidError, match="contains a `SecretStr`"):
            Compiler(HERE).top_level(type(value)).write(value)


class Part(pydantic.BaseModel):
    name: str
    price: Decimal = Decimal(1)
    due: date | None = None
    sizes: dict[str, tuple[int, ...]] = {}

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def written(self) -> int:
        """The number of forms that pydantic has created."""
        FORMS.append(self.name)
        return len(FORMS)


class Scanned(Part):
    scan: bytes


class Delivery(pydantic.BaseModel, arbitrary_types_allowed=True):
    due: datetime
    scan: Annotated[bytes | np.ndarray[Any, Any], pydantic.WithJsonSchema({})]
    note: str | None = None


class Loose(pydantic.BaseModel, extra="allow"):
    pass


class Chosen(pydantic.BaseModel):
    value: Any


FORMS: list[str] = []


def sent(value: Any) -> Any:
    return _native.decode(*_native.encode(value, "the value"))


def written_by_hint(value: Any) -> Any:
    return Compiler(HERE).top_level(type(value)).write(value)


@pytest.mark.parametrize("write", [sent, written_by_hint])
def test_pydantic_writes_a_model_twice_only_for_buffers(write: Callable[[Any], Any]) -> None:
    for part, forms in ((Part(name="bolt"), 1), (Scanned(name="nut", scan=b"x"), 2)):
        FORMS.clear()
        written = write(part)
        assert (len(FORMS), written["price"], written.get("scan")) == (forms, "1", getattr(part, "scan", None))


@pytest.mark.parametrize("write", [sent, written_by_hint])
def test_the_form_of_a_model_does_not_depend_on_its_bytes(write: Callable[[Any], Any]) -> None:
    due = datetime(2026, 1, 1, tzinfo=UTC)
    for scan in (b"text", b"\xff", np.zeros(2)):
        written = write(Delivery(due=due, scan=scan))
        np.testing.assert_array_equal(written.pop("scan"), scan)
        assert written == {"due": "2026-01-01T00:00:00Z", "note": None}


def test_fields_of_any_type_keep_their_bytes() -> None:
    assert sent(Loose.model_validate({"scan": b"\xff"})) == {"scan": b"\xff"}
    assert sent(Chosen(value={"scan": b"\xff"})) == {"value": {"scan": b"\xff"}}


class OwnForms(BaseAdapter):
    @tool
    def account(self, account: Account) -> Any:
        return account

    @tool
    def order(self, order: Order) -> Order:
        return order


def test_the_form_of_an_object_fits_its_own_hint() -> None:
    form = {"owner": "a", "balance": 5.0, "tags": [], "rate": 0.5}
    assert call_tool(OwnForms, "account", account=Account("a", 5.0)) == form
    order = Order([Item("tea", 2.0)])
    assert call_tool(OwnForms, "order", order=order)["total"] == order.total == 2.0
