"""The paths in errors of pydantic are paths of the value: they have no tags and no names of members of unions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
import pytest

from snakepit_bridge._hints.base import InvalidError, Schemas
from snakepit_bridge._hints.compiler import Compiler


class Car(pydantic.BaseModel):
    kind: Literal["car"]
    doors: Annotated[int, pydantic.Field(ge=1)]
    car: int | None = None


class Bike(pydantic.BaseModel):
    kind: Literal["bike"]
    owner: Owner | None = None
    sizes: int | list[int] = 1
    counts: dict[Annotated[str, pydantic.Field(max_length=1)], int] = {}


class Owner(pydantic.BaseModel, extra="forbid"):
    name: str
    vehicles: list[Vehicle] = []


class Old(pydantic.BaseModel):
    """Renames a key and copies the map, so that pydantic checks another one."""

    kind: Literal["old"]
    vehicle: Vehicle | None = None
    years: int = 0

    @pydantic.model_validator(mode="before")
    @classmethod
    def renamed(cls, value: Any) -> Any:
        return {"years": value.get("age", 0), **{key: item for key, item in value.items() if key != "age"}}


Vehicle = Annotated[Car | Bike, pydantic.Field(discriminator="kind")]
Tagged = Annotated[
    Annotated[Car, pydantic.Tag("a car")] | Annotated[Bike, pydantic.Tag("a bike")],
    pydantic.Discriminator(lambda value: f"a {value['kind']}"),
]
HERE = globals()


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (Vehicle, {"kind": "car", "doors": 0}, {".doors": "is invalid: Input should be greater than or equal to 1"}),
        (Vehicle, {"kind": "car"}, {".doors": "is missing"}),
        (Vehicle, {"kind": "car", "car": "x", "doors": 1}, {".car": "is invalid: Input should be a valid integer"}),
        (Vehicle, {}, {".kind": "is missing"}),
        (Vehicle, {"kind": "boat"}, {".kind": "is 'boat', expected one of 'car', 'bike'"}),
        (
            list[Vehicle],
            [{"kind": "bike", "owner": {"vehicles": [{"kind": "car", "doors": "x"}, {"kind": "y"}], "extra": 1}}],
            {
                "[0].owner.name": "is missing",
                "[0].owner.vehicles[0].doors": "is invalid: Input should be a valid integer",
                "[0].owner.vehicles[1].kind": "is 'y', expected one of",
                "[0].owner.extra": "is unknown",
            },
        ),
        (Bike, {"kind": "bike", "sizes": [1, "x"]}, {".sizes": "is invalid: ", ".sizes[1]": "is invalid: "}),
        (Bike, {"kind": "bike", "counts": {"a": "x"}}, {".counts.a": "is invalid: "}),
        (Bike, {"kind": "bike", "counts": {" ": "x", "bb": 1}}, {'.counts[" "]': "is ", ".counts key 'bb'": "is "}),
        (Tagged, {"kind": "car"}, {".doors": "is missing"}),
        (list[Car | Bike], [{"kind": "bike", "sizes": "x"}], {"[0]": "fits none of"}),
        (Old, {"kind": "old", "age": "x"}, {".years": "is invalid: "}),
        (Old, {"kind": "old", "vehicle": {"kind": "car"}}, {".vehicle.doors": "is missing"}),
    ],
)
def test_paths_lead_to_the_invalid_parts(hint: Any, value: Any, expected: dict[str, str]) -> None:
    with pytest.raises(InvalidError) as caught:
        Compiler(HERE).top_level(hint).read(value)
    found = dict(caught.value.problems)
    assert found.keys() == expected.keys()
    for path, problem in expected.items():
        assert found[path].startswith(problem)


def test_discriminators_refer_to_renamed_definitions() -> None:
    class Pair(pydantic.BaseModel):
        vehicle: Vehicle

    hint = Compiler({**HERE, "Pair": Pair}).top_level(tuple[Car, Pair])
    schemas = Schemas(is_result=False)
    schema = schemas.complete(hint.schema(schemas))
    discriminator = schema["$defs"]["Pair"]["properties"]["vehicle"]["discriminator"]
    assert discriminator == {"mapping": {"bike": "#/$defs/Bike", "car": "#/$defs/Car2"}, "propertyName": "kind"}
