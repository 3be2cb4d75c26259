"""Specs of tools, read from signatures, annotations and docstrings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypedDict

import numpy as np
import pytest

from snakepit_bridge import BaseAdapter, tool
from snakepit_bridge._docstrings import read
from snakepit_bridge._event_loop import EventLoop
from snakepit_bridge._plan import AdapterError, Plan, plan_of

if TYPE_CHECKING:
    from snakepit_bridge._specs import ToolSpec


def plan(adapter: type) -> Plan:
    return plan_of(adapter, EventLoop())


def spec(adapter: type, name: str) -> ToolSpec:
    return next(tool.spec for tool in plan(adapter).tools if tool.spec["name"] == name)


class Point(TypedDict):
    x: int


class Documented(BaseAdapter):
    @tool
    def scale(self, value: float, factor: int = 2, *, note: str | None = None) -> float:
        """Multiply.

        More about it.

        Args:
            value: What to multiply,
                over two lines.
            factor (int): By how much.

        Returns:
            The product.
        """
        del note
        return value * factor

    @tool(name="other", description="Set by the decorator.", idempotent=True, supports_streaming=True)
    def renamed(self, *, flag: bool, **rest: Any) -> None:
        """Not this."""

    @tool
    def pull(self) -> Iterator[int]:
        yield 1

    @tool
    async def apull(self) -> AsyncIterator[int]:
        yield 1

    @staticmethod
    @tool
    def static(value: int) -> int:
        return value

    @classmethod
    @tool
    def on_class(cls, value: int) -> int:
        return value


def test_signature_and_docstring_become_the_spec() -> None:
    scale = spec(Documented, "scale")
    assert scale["description"] == "Multiply.\n\nMore about it.\n\nReturns:\n    The product."
    assert scale["closed"]
    assert not scale["supports_streaming"]
    assert scale["parameters"] == [
        {
            "name": "value",
            "type": "float",
            "description": "What to multiply, over two lines.",
            "required": True,
            "default": None,
        },
        {"name": "factor", "type": "integer", "description": "By how much.", "required": False, "default": 2},
        {"name": "note", "type": "string", "description": "", "required": False, "default": None},
    ]


def test_the_description_keeps_all_sections_but_the_arguments() -> None:
    text = (
        "Multiply.\n\nArgs:\n    value: What,\n        at length.\n\n    factor: By what.\n\n"
        "Returns:\n    The product.\n\n"
        "Warning:\n    Slow.\n\nExamples:\n    >>> f(1)\n\nSo far."
    )
    description, docs = read(text)
    assert description == (
        "Multiply.\n\nReturns:\n    The product.\n\nWarning:\n    Slow.\n\nExamples:\n    >>> f(1)\n\nSo far."
    )
    assert docs == {"value": "What, at length.", "factor": "By what."}
    assert read("Args:\n    a: b") == ("", {"a": "b"})
    assert read("Args:\na: b\nc: d\n\nMore.") == ("More.", {"a": "b", "c": "d"})


def test_docstrings_in_the_style_of_numpy() -> None:
    text = (
        "Multiply.\n\nParameters\n----------\nvalue : float\n    What,\n    at length.\n\n    And more.\n"
        "first, second : int, optional\n    By what.\n*rest\n    Others.\nplain\n\n"
        "Returns\n-------\nfloat\n    The product.\n\nOther Parameters\n----------------\nlast : str\n    The last.\n\n"
        "Examples\n--------\n>>> f(1)\n"
    )
    description, docs = read(text)
    assert description == ("Multiply.\n\nReturns\n-------\nfloat\n    The product.\n\nExamples\n--------\n>>> f(1)")
    assert docs == {
        "value": "What, at length. And more.",
        "first": "By what.",
        "second": "By what.",
        "rest": "Others.",
        "plain": "",
        "last": "The last.",
    }
    assert read("Parameters\n----------\nx : int\n    One.\n\nMore of it.") == ("More of it.", {"x": "One."})
    assert read("Parameters\nare no header.") == ("Parameters\nare no header.", {})


def test_docstrings_in_the_style_of_rest() -> None:
    text = (
        "Multiply.\n\n:param value: What,\n    at length.\n:type value: float\n:param int factor: By what: a number.\n"
        ":keyword note:\n    A note.\n:param \\*rest: Others.\n:returns: The product.\n:rtype: float\n"
        ":raises ValueError: If not.\n\n:note: kept"
    )
    description, docs = read(text)
    assert description == (
        "Multiply.\n\n:returns: The product.\n:rtype: float\n:raises ValueError: If not.\n\n:note: kept"
    )
    assert docs == {"value": "What, at length.", "factor": "By what: a number.", "note": "A note.", "rest": "Others."}


def test_lone_surrogates_in_documentation_are_escaped() -> None:
    class Odd(BaseAdapter):
        @tool
        def documented(self, value: int) -> int:
            """Broken \ud800 text.

            Args:
                value: A \udfff.
            """
            return value

        @tool(description="Also \ud800.")
        def described(self) -> None:
            pass

    documented = spec(Odd, "documented")
    assert documented["description"] == "Broken \\ud800 text."
    assert documented["parameters"][0]["description"] == "A \\udfff."
    assert spec(Odd, "described")["description"] == "Also \\ud800."


def test_a_lone_surrogate_in_a_name_is_rejected() -> None:
    class Odd(BaseAdapter):
        @tool(name="a\ud800")
        def odd(self) -> None:
            pass

    with pytest.raises(AdapterError, match=r"tool 'a.ud800' of .*Odd` has a name that cannot be encoded as UTF-8"):
        plan(Odd)


def test_options_override_the_docstring() -> None:
    other = spec(Documented, "other")
    assert other["description"] == "Set by the decorator."
    assert other["supports_streaming"]
    assert other["metadata"]["snakepit.idempotent"] == "true"
    assert not other["closed"], "**rest takes any argument"


def test_generators_stream_and_specs_omit_bound_parameters() -> None:
    assert spec(Documented, "pull")["supports_streaming"]
    assert spec(Documented, "apull")["supports_streaming"]
    assert [p["name"] for p in spec(Documented, "static")["parameters"]] == ["value"]
    assert [p["name"] for p in spec(Documented, "on_class")["parameters"]] == ["value"]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, "integer"),
        (bool, "boolean"),
        (bytes, "bytes"),
        (list[int], "list"),
        (tuple[int, ...], "list"),
        (Sequence[str], "list"),
        (dict[str, int], "map"),
        (Point, "map"),
        (np.ndarray, "tensor"),
        (Annotated[str, "doc"], "string"),
        (None, "null"),
        (int | None, "any"),
        (int | str, "any"),
        (Literal["a", "b"], "string"),
        (Literal[1, 2], "integer"),
        (Literal["a", 1], "any"),
        (object, "any"),
        (Any, "any"),
    ],
)
def test_annotations_become_wire_types(annotation: Any, expected: str) -> None:
    class Adapter(BaseAdapter):
        @tool
        def use(self, value: Any) -> Any:
            return value

        use.__annotations__["value"] = annotation

    assert spec(Adapter, "use")["parameters"][0]["type"] == expected


def test_optional_types_are_recognized_only_with_the_default_none() -> None:
    class Adapter(BaseAdapter):
        @tool
        def use(
            self,
            must: int | None,
            other: int | None = 1,
            may: int | None = None,
            old: Optional[list[str]] = None,  # noqa: UP045
            word: Literal["a", "b"] | None = None,
            either: int | str | None = None,
        ) -> None: ...

    types = {p["name"]: p["type"] for p in spec(Adapter, "use")["parameters"]}
    assert types == {
        "must": "any",
        "other": "any",
        "may": "integer",
        "old": "list",
        "word": "string",
        "either": "any",
    }


def test_an_unsupported_hint_fails_the_start() -> None:
    class Missing(BaseAdapter):
        @tool
        def use(self, a: int, b: NotThere) -> None:  # type: ignore[name-defined]  # noqa: F821
            """Takes a class that is only imported for type checkers."""

    class Foreign(BaseAdapter):
        @tool
        def use(self, a: list[complex]) -> None: ...

    class Returned(BaseAdapter):
        @tool
        def use(self) -> type[int]:
            return int

    class Yielded(BaseAdapter):
        @tool
        def use(self) -> int:  # type: ignore[misc]
            yield 1

    class Unknown(BaseAdapter):
        @tool
        def use(self) -> NotThere[int]:  # type: ignore[name-defined]  # noqa: F821
            yield 1

    class Others(BaseAdapter):
        @tool
        def use(self, **rest: complex) -> None: ...

    for adapter, needles in [
        (Missing, ["parameter `b` of tool", "use`", "`NotThere`", "outside of `if TYPE_CHECKING`"]),
        (Foreign, ["parameter `a` of tool", "`complex`, which has no JSON form"]),
        (Returned, ["the result of tool", "`type[int]`, which has no JSON form"]),
        (Unknown, ["the result of tool", "use`", "`NotThere", "outside of `if TYPE_CHECKING`"]),
        (Yielded, ["the result of tool", "is `int`, but the tool yields", "`Iterator[int]`"]),
        (Others, ["parameter `**rest` of tool", "`complex`"]),
    ]:
        with pytest.raises(AdapterError) as caught:
            plan(adapter)
        place = f"({__file__}:{vars(adapter)['use'].__code__.co_firstlineno})"
        for needle in (*needles, place):
            assert needle in str(caught.value)


def test_an_override_has_the_new_signature_at_the_place_of_the_original() -> None:
    class Base(BaseAdapter):
        @tool
        def first(self, a: int) -> None: ...

        @tool
        def second(self) -> None: ...

    class Derived(Base):
        @tool
        def first(self, b: str) -> None: ...  # type: ignore[override]

    assert [t.spec["name"] for t in plan(Derived).tools] == ["first", "second"]
    assert spec(Derived, "first")["parameters"][0]["name"] == "b"


def test_errors_name_methods_that_cannot_be_tools() -> None:
    class PositionalOnly(BaseAdapter):
        @tool
        def odd(self, a: int, /) -> None: ...

    class Twice(BaseAdapter):
        @tool
        def one(self) -> None: ...

        @tool(name="one")
        def two(self) -> None: ...

    class Nothing(BaseAdapter):
        pass

    class Unserved(BaseAdapter):
        dynamic_tools = ("ghost",)

    for adapter, needles in [
        (PositionalOnly, ["odd", "`a`", "`/`"]),
        (Twice, ["`one`", "`two`"]),
        (Nothing, ["Nothing", "@tool"]),
        (Unserved, ["dynamic_tools", "execute_tool"]),
    ]:
        with pytest.raises(AdapterError) as caught:
            plan(adapter)
        for needle in needles:
            assert needle in str(caught.value)
