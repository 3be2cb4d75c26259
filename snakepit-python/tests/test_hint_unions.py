"""Hints of unions: tags and ``Literal`` fields select the member, errors name only that one, and schemas show them."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps, loads
from typing import Annotated, Any, AnyStr, Literal, TypedDict

import annotated_types
import msgspec
import pytest
from typing_extensions import TypeAliasType

from snakepit_bridge import BaseAdapter, InvalidArgumentError, _native, tool
from snakepit_bridge._hints.base import InvalidError, Schemas
from snakepit_bridge._hints.compiler import Compiler
from snakepit_bridge.testing import ToolFailed, call_tool


class Cat(msgspec.Struct, tag=True):
    lives: Annotated[int, msgspec.Meta(ge=0)] = 9


class Dog(msgspec.Struct, tag="dog"):
    name: str
    friends: list[Cat | Dog] = []


class Lion(Cat, tag="lion"):
    pride: str = "none"


class One(msgspec.Struct, tag=1, tag_field="version"):
    value: int = 0


class Two(msgspec.Struct, tag=2, tag_field="version"):
    value: str = ""


@dataclass
class Circle:
    radius: float
    kind: Literal["circle", "round"] = "circle"


@dataclass
class Square:
    side: float
    kind: Literal["square"] = "square"


class Add(TypedDict):
    op: Literal["add"]
    value: int


class Remove(TypedDict):
    op: Literal["remove"]
    key: str


@dataclass
class Base:
    value: int


@dataclass
class Derived(Base):
    more: int


Pets = TypeAliasType("Pets", Cat | Dog)
HERE = globals()


def problems(hint: Any, value: Any, *, is_result: bool = False) -> dict[str, str]:
    compiled = Compiler(HERE).top_level(hint)
    with pytest.raises(InvalidError) as caught:
        (compiled.write if is_result else compiled.read)(value)
    return dict(caught.value.problems)


#: Hint, JSON value, and the problems by path.
REJECTED: list[tuple[Any, Any, dict[str, str]]] = [
    (Cat | Dog, {"lives": 1}, {".type": "is missing, expected 'Cat' or 'dog'"}),
    (Cat | Dog, {"type": "Cow", "lives": 1}, {".type": "is 'Cow', expected 'Cat' or 'dog'"}),
    (Cat | Dog, {"type": ["dog"]}, {".type": "is a list, expected 'Cat' or 'dog'"}),
    (Cat | Dog, {"type": "dog", "lives": 1}, {".name": "is missing", ".lives": "is unknown"}),
    (Cat | Dog, {"type": "Cat", "lives": -1}, {".lives": "is -1, below minimum 0"}),
    (Cat | Dog, 5, {"": "is an integer, expected map of `Cat` or map of `Dog`"}),
    (Cat | Dog | None, {}, {".type": "is missing, expected 'Cat' or 'dog'"}),
    (Cat | None, {"type": "Cow"}, {".type": "is 'Cow', expected 'Cat'"}),
    (Cat | Dog | list[int], ["x"], {"[0]": "is a string, expected integer"}),
    (Pets | None, {"type": "dog"}, {".name": "is missing"}),
    (Pets | Lion, {"type": "lion", "pride": 1}, {".pride": "is an integer, expected string"}),
    (dict[str, list[Pets]], {"a": [{"type": "x"}]}, {'["a"][0].type': "is 'x', expected 'Cat' or 'dog'"}),
    (
        Cat | Dog,
        {"type": "dog", "name": "b", "friends": [{"type": "Cat", "lives": "x"}, {"type": "dog"}, {}]},
        {
            ".friends[0].lives": "is a string, expected integer",
            ".friends[1].name": "is missing",
            ".friends[2].type": "is missing, expected 'Cat' or 'dog'",
        },
    ),
    (Annotated[Cat, "a cat"] | Dog, {"type": "Cat", "lives": "x"}, {".lives": "is a string, expected integer"}),
    (One | Two, {"version": 3}, {".version": "is 3, expected 1 or 2"}),
    (One | Two, {"version": True}, {".version": "is True, expected 1 or 2"}),
    (One | Two, {"version": 2.0, "value": 1}, {".value": "is an integer, expected string"}),
    (One, {"version": True}, {".version": "is True, expected 1"}),
    (Cat | Dog | Base, {"type": "dog"}, {".name": "is missing"}),
    (
        Cat | Dog | Base,
        {"value": "x"},
        {"": "fits none of its types (`type` is missing, expected 'Cat' or 'dog'; "},
    ),
    (Circle | Square, {"kind": "round"}, {".radius": "is missing"}),
    (Circle | Square, {"kind": "oval", "radius": 1}, {".kind": "is 'oval', expected 'circle', 'round' or 'square'"}),
    (Circle | Square, {"size": 1}, {"": "fits none of its types (map of `Circle`: `radius` is missing; "}),
    (Add | Remove, {"op": "add"}, {".value": "is missing"}),
    (Add | Remove, {"value": 1}, {".op": "is missing, expected 'add' or 'remove'"}),
]


@pytest.mark.parametrize("case", REJECTED, ids=lambda case: f"{case[0]}-{case[1]}")
def test_errors_name_the_member_that_the_tag_selects(case: tuple[Any, Any, dict[str, str]]) -> None:
    hint, value, expected = case
    found = problems(hint, value)
    assert found.keys() == expected.keys()
    for path, problem in expected.items():
        assert found[path] == problem or (problem.endswith("; ") and found[path].startswith(problem))


#: Hint, JSON value, and the value of the tool.
ACCEPTED: list[tuple[Any, Any, Any]] = [
    (Cat | Dog, {"type": "dog", "name": "a"}, Dog("a")),
    (Cat | Dog | None, None, None),
    (Cat | Dog | dict[str, Any], {"type": "Cat", "other": 1}, {"type": "Cat", "other": 1}),
    (Cat | Dog | dict[str, Any], {}, {}),
    (Cat | dict[str, Any], {}, Cat()),
    (Cat | Base, {"value": 1}, Base(1)),
    (One | Two, {"version": 2.0}, Two()),
    (Circle | Square, {"side": 1}, Square(1.0)),
    (Circle | Square | dict[str, int], {"kind": 1}, {"kind": 1}),
    (list[Add | Remove], [{"op": "remove", "key": "a"}], [{"op": "remove", "key": "a"}]),
    (bytes | str, "test", "test"),
    (bytes | str, b"test", b"test"),
    (AnyStr, "test", "test"),
    (list[bytes | str | None], ["test", b"test", None], ["test", b"test", None]),
]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: f"{case[0]}-{case[1]}")
def test_maps_become_the_member_that_accepts_them(case: tuple[Any, Any, Any]) -> None:
    hint, json, expected = case
    got = Compiler(HERE).top_level(hint).read(json)
    assert (got, type(got)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("hint", "value", "written"),
    [
        (Cat | Lion, Lion(1, "big"), {"type": "lion", "lives": 1, "pride": "big"}),
        (Base | Derived, Derived(1, 2), {"value": 1, "more": 2}),
        (Base | None, Derived(1, 2), {"value": 1}),
        (Pets | None, Dog("a", [Cat(1)]), {"type": "dog", "name": "a", "friends": [{"type": "Cat", "lives": 1}]}),
        (Add | Remove, {"op": "remove", "key": "a"}, {"op": "remove", "key": "a"}),
        (bytes | str, "test", "test"),
    ],
)
def test_a_result_is_written_as_its_own_class(hint: Any, value: Any, written: Any) -> None:
    assert Compiler(HERE).top_level(hint).write(value) == written


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (Cat | Dog, Dog(1), {".name": "is an integer, expected string"}),  # type: ignore[arg-type]
        (Base | Derived, Derived(1, "x"), {".more": "is a string, expected integer"}),  # type: ignore[arg-type]
        (Add | Remove, {"op": "add", "key": 1}, {".value": "is missing", ".key": "is unknown"}),
        (Add | Remove, {"op": "x"}, {".op": "is 'x', expected 'add' or 'remove'"}),
    ],
)
def test_errors_of_results_name_one_member(hint: Any, value: Any, expected: dict[str, str]) -> None:
    assert problems(hint, value, is_result=True) == expected


def schema_of(annotation: Any, *, is_result: bool = False) -> dict[str, Any]:
    schemas = Schemas(is_result=is_result)
    return schemas.complete(Compiler(HERE).top_level(annotation).schema(schemas))


@pytest.mark.parametrize("is_result", [False, True])
def test_schemas_have_the_discriminator_of_msgspec(*, is_result: bool) -> None:
    for annotation in (Cat | Dog, Cat | Dog | None, list[Cat | Dog], dict[str, One | Two]):
        # Its keys are integers for such tags, before they become JSON.
        expected = loads(dumps(msgspec.json.schema(annotation)))
        found = schema_of(annotation, is_result=is_result)
        for definition in found["$defs"].values():
            assert definition.pop("additionalProperties") is False
        del found["$defs"], expected["$defs"]
        assert found == expected
    constraint = Annotated[Cat | Dog, annotated_types.Predicate(bool), "pets"]
    assert schema_of(constraint)["discriminator"] == schema_of(Cat | Dog)["discriminator"]
    assert schema_of(Cat | Dog)["$defs"]["Dog"]["properties"]["type"] == {"const": "dog"}
    assert schema_of(Cat | int)["anyOf"] == [{"$ref": "#/$defs/Cat"}, {"type": "integer"}]


class Zoo(BaseAdapter):
    @tool
    def feed(self, pet: Cat | Dog, others: list[Pets] | None = None) -> Cat | Dog:
        del others
        return pet

    @tool
    def wrong(self) -> list[Cat | Dog]:
        return [Cat(), Dog(5)]  # type: ignore[arg-type]


def test_a_struct_is_sent_with_its_tag() -> None:
    form = {"type": "dog", "name": "a", "friends": [{"type": "Cat", "lives": 1}]}
    assert _native.decode(*_native.encode(Dog("a", [Cat(1)]), "the value")) == form
    assert call_tool(Zoo, "feed", pet=Dog("a", [Cat(1)]), others=[Cat()]) == form
    with pytest.raises(InvalidArgumentError) as caught:
        call_tool(Zoo, "feed", pet={"type": "cow"}, others=[{"type": "dog"}])
    assert str(caught.value) == (
        "argument `pet.type` of tool `feed` is 'cow', expected 'Cat' or 'dog', and `others[0].name` is missing"
    )
    with pytest.raises(ToolFailed) as failed:
        call_tool(Zoo, "wrong")
    assert failed.value.message == "the result of tool `wrong`[1].name is an integer, expected string"
