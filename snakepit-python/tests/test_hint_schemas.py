"""The JSON Schemas of hints: those of pydantic, except for titles, and more closed for classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal, Optional
from uuid import UUID

import annotated_types
import msgspec
import numpy as np
import numpy.typing as npt
import pydantic
import pytest
from typing_extensions import TypedDict

import test_hint_classes
from snakepit_bridge import BaseAdapter, tool
from snakepit_bridge._event_loop import EventLoop
from snakepit_bridge._hints.base import Schemas
from snakepit_bridge._hints.compiler import Compiler
from snakepit_bridge._plan import plan_of
from snakepit_bridge._schema_types import SchemaTypes
from test_hint_classes import Account, Box, Cat, Circle, Color, Dog, Holder, Item, Model, Order, Point, Square


class Movie(TypedDict, total=False):
    """A film."""

    title: str
    year: Annotated[int, pydantic.Field(ge=1888, description="of the first show")]


@dataclass
class Node:
    """A tree."""

    value: int
    children: list[Node] = field(default_factory=list)
    parent: Node | None = None


#: Each has the schema that pydantic creates.
LIKE_PYDANTIC: list[Any] = [
    int,
    float,
    str,
    bool,
    None,
    Any,
    object,
    list,
    list[int],
    list[list[float]],
    tuple,
    tuple[int, str],
    tuple[int, ...],
    tuple[()],
    set[int],
    frozenset[str],
    dict,
    dict[str, int],
    dict[int, str],
    dict[str, Any],
    dict[Color, int],
    dict[Annotated[str, annotated_types.MinLen(1)], int],
    Sequence[int],
    Iterable[int],
    Mapping[str, list[int]],
    int | None,
    Optional[list[int]],  # noqa: UP045
    int | str | None,
    Literal["a"],
    Literal["a", "b"],
    Literal[1, "a", None],
    Color,
    list[Color],
    datetime,
    date,
    time,
    timedelta,
    UUID,
    Path,
    Annotated[int, pydantic.Field(ge=0, le=10, description="a number")],
    Annotated[float, pydantic.Field(gt=0, lt=1, multiple_of=0.5)],
    Annotated[str, pydantic.Field(min_length=1, max_length=3, pattern="^a")],
    Annotated[list[Annotated[int, annotated_types.Gt(0)]], annotated_types.Len(1, 3)],
    Annotated[dict[str, int], annotated_types.MinLen(1)],
    Annotated[int, pydantic.Field(ge=0)] | None,
    Item,
    list[Item],
    Node,
    Circle | Square,
    Movie,
    Point,
    Model,
    list[Model],
]


@pytest.mark.parametrize("annotation", LIKE_PYDANTIC, ids=str)
def test_schemas_match_pydantic(annotation: Any) -> None:
    expected = pydantic.TypeAdapter(annotation).json_schema()
    assert normal(schema_of(annotation)) == normal(expected)


@pytest.mark.parametrize("annotation", [Cat, list[Cat]], ids=str)
def test_schemas_of_structs_match_msgspec(annotation: Any) -> None:
    assert normal(schema_of(annotation)) == normal(msgspec.json.schema(annotation))


def schema_of(annotation: Any, *, is_result: bool = False) -> dict[str, Any]:
    schemas = Schemas(is_result=is_result)
    return schemas.complete(Compiler({**vars(test_hint_classes), "Node": Node}).top_level(annotation).schema(schemas))


def normal(schema: dict[str, Any]) -> Any:
    """Return a schema without titles and references, except for those of recursive classes."""
    definitions = schema.get("$defs", {})

    def simplified(part: Any, inside: tuple[str, ...]) -> Any:
        if isinstance(part, list):
            return [simplified(item, inside) for item in part]
        if not isinstance(part, dict):
            return part
        rest: dict[str, Any] = {}
        for key, value in part.items():
            if key == "properties":
                rest[key] = {name: simplified(field, inside) for name, field in value.items()}
            elif key not in ("title", "$defs", "$ref", "discriminator", "default"):
                rest[key] = simplified(value, inside)
            elif key == "default":
                rest[key] = value
        if "properties" in rest and rest.get("additionalProperties") is False:
            # Classes accept no other fields.
            del rest["additionalProperties"]
        for key in ("required", "enum"):
            if key in rest:
                rest[key] = sorted(rest[key], key=repr)
        if "const" in rest or len(rest.get("enum", ())) == 1:
            rest["enum"] = rest.get("enum", [rest.pop("const", None)])
            rest.pop("type", None)
        name = part.get("$ref", "").removeprefix("#/$defs/")
        if name in inside:
            return {"$ref": name, **rest}
        return {**simplified(definitions[name], (*inside, name)), **rest} if name else rest

    return simplified(schema, ())


def test_schemas_of_results_describe_the_written_form() -> None:
    assert schema_of(Decimal) == {"anyOf": [{"type": "number"}, {"type": "string"}]}
    assert schema_of(Decimal, is_result=True) == {"type": "string"}
    item = schema_of(Item, is_result=True)["$defs"]["Item"]
    assert item["required"] == ["name", "price", "count", "color"], "a result has all fields"
    order = schema_of(Order, is_result=True)["$defs"]["Order"]
    assert "total" in order["properties"]
    assert "factor" not in order["properties"]
    assert "total" not in schema_of(Order)["$defs"]["Order"]["properties"]
    assert schema_of(Account)["$defs"]["Account"]["required"] == ["owner"]


def test_schemas_of_bytes_and_arrays() -> None:
    assert schema_of(bytes) == {"type": "string", "contentEncoding": "base64"}
    assert schema_of(npt.NDArray[np.float32]) == {
        "type": "array",
        "format": "ndarray",
        "items": {"anyOf": [{"type": "number"}, {"type": "array"}]},
    }
    matrix = np.ndarray[tuple[int, Literal[3]], np.dtype[np.int64]]
    assert schema_of(matrix) == {
        "type": "array",
        "format": "ndarray",
        "items": {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3},
    }
    assert schema_of(np.ndarray, is_result=True) == {"type": "array", "format": "ndarray", "items": {}}


def test_definitions_with_equal_names_are_separate() -> None:
    def make(annotation: type) -> type:
        class Item(TypedDict):
            value: annotation  # type: ignore[valid-type]

        Item.__annotations__["value"] = annotation
        return Item

    first, second = make(int), make(str)
    schema = schema_of(tuple[first, second, Box[first]])  # type: ignore[valid-type]
    assert [item["$ref"] for item in schema["prefixItems"]] == ["#/$defs/Item", "#/$defs/Item2", "#/$defs/Box"]
    assert schema["$defs"]["Item2"]["properties"] == {"value": {"type": "string"}}
    assert schema["$defs"]["Box"]["properties"] == {"value": {"$ref": "#/$defs/Item"}}


def test_definitions_of_pydantic_join_those_of_the_tool() -> None:
    schema = schema_of(tuple[Model, Holder])
    assert set(schema["$defs"]) == {"Model", "Holder", "Cat", "Dog", "Point"}
    assert schema["$defs"]["Model"]["properties"]["child"]["anyOf"][0] == {"$ref": "#/$defs/Model"}


@pytest.mark.parametrize(
    ("annotation", "argument", "result"),
    [
        ("tuple[int, *tuple[str, ...]]", "list[int | str] | tuple[int | str, ...]", "list[int | str]"),
        ("tuple[*tuple[int, ...], float]", "Sequence[int | float]", "list[int | float]"),
        (range, "Sequence[int]", "list[int]"),
        (IPv4Address, "str | IPv4Address", "str"),
        (list[Cat | Dog], "Sequence[Cat | Dog]", "list[Cat | Dog]"),
    ],
)
def test_schemas_become_the_types_of_stubs(annotation: Any, argument: str, result: str) -> None:
    for is_argument, expected in ((True, argument), (False, result)):
        schema = schema_of(annotation, is_result=not is_argument)
        types = SchemaTypes(schema, is_argument=is_argument, define=lambda name, *_: name)
        assert types.annotation(schema, "value") == expected


class Documented(BaseAdapter):
    @tool
    def use(
        self,
        plain: int,
        items: list[Item],
        level: Annotated[int, pydantic.Field(ge=0, description="from zero")] = 3,
        color: Color | None = None,
        near: Annotated[str, "where"] = "here",
        default: int = pydantic.Field(default=5, le=9),
        must: str = pydantic.Field(min_length=2),
    ) -> dict[str, Item]:
        """Use it.

        Args:
            level: This is less specific.
            color: The color.
        """
        raise NotImplementedError


def test_the_spec_contains_schemas_defaults_and_descriptions() -> None:
    (planned,) = plan_of(Documented, EventLoop()).tools
    spec = planned.spec
    parameters = {parameter["name"]: parameter for parameter in spec["parameters"]}
    assert "schema" not in parameters["plain"]
    assert parameters["items"]["schema"]["items"] == {"$ref": "#/$defs/Item"}
    assert set(parameters["items"]["schema"]["$defs"]) == {"Item", "Color"}
    assert parameters["level"] == {
        "name": "level",
        "type": "integer",
        "description": "from zero",
        "required": False,
        "default": 3,
        "schema": {"type": "integer", "minimum": 0},
    }
    assert parameters["color"]["description"] == "The color."
    assert parameters["color"]["schema"]["anyOf"] == [{"$ref": "#/$defs/Color"}, {"type": "null"}]
    assert parameters["near"]["default"] == "here"
    assert (parameters["default"]["required"], parameters["default"]["default"]) == (False, 5)
    assert parameters["default"]["schema"] == {"type": "integer", "maximum": 9}
    assert parameters["must"]["required"]
    assert spec["result_schema"]["additionalProperties"] == {"$ref": "#/$defs/Item"}


def test_the_schema_of_other_arguments_is_in_the_spec() -> None:
    class Open(BaseAdapter):
        @tool
        def order(self, count: int, **others: Item) -> None:
            del count, others

        @tool
        def anything(self, **others: Any) -> None:
            del others

    specs = {planned.spec["name"]: planned.spec for planned in plan_of(Open, EventLoop()).tools}
    schema = specs["order"]["others_schema"]
    assert (schema["$ref"], set(schema["$defs"])) == ("#/$defs/Item", {"Item", "Color"})
    assert "others_schema" not in specs["anything"]
