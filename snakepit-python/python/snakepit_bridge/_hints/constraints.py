"""Constraints in `Annotated`, known by their attributes: those of annotated-types, pydantic and msgspec."""

from __future__ import annotations

from snakepit_bridge._hints.base import Hint, HintError, invalid, show
from snakepit_bridge._hints.containers import count
from snakepit_bridge._hints.unions import Union
from snakepit_bridge._signatures import EMPTY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from snakepit_bridge._hints.base import Schemas

    Check = Callable[[Any], "str | None"]


def annotated(inner: Hint, metadata: Iterable[Any], named: str) -> Hint:
    """Return a hint with the constraints and the description of `Annotated`. Other metadata has no meaning here.

    Raises:
        HintError: A constraint does not apply to values of the hint.
    """
    checks: list[Check] = []
    keywords: dict[str, Any] = {}
    description = ""
    for item in _flat(metadata):
        for text in (item, getattr(item, "description", None), getattr(item, "documentation", None)):
            if isinstance(text, str) and text:
                description = text
        for attribute, (keyword, check_of) in _CONSTRAINTS.items():
            bound = getattr(item, attribute, None)
            if bound is None or isinstance(item, str) or callable(bound):
                continue
            keywords[keyword] = bound.pattern if hasattr(bound, "pattern") else bound
            checks.append(check_of(bound))
        predicate = getattr(item, "func", None)
        if predicate is not None and type(item).__name__ == "Predicate":
            checks.append(_predicate(predicate))
    if keywords:
        _check_kinds(inner, keywords, named)
    return Constrained(inner, checks, keywords, description) if checks or description else inner


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    """Iterate over metadata and the parts of groups, such as `Interval`, `Len` and the `FieldInfo` of pydantic."""
    for item in metadata:
        # The constraints of a `FieldInfo` are in its own metadata.
        parts = getattr(item, "metadata", None)
        if type(item).__name__ == "FieldInfo" and isinstance(parts, list):
            if item.validation_alias is not None:
                raise HintError(f"has the alias {item.validation_alias!r}; only fields of pydantic models have aliases")
            yield item
            yield from _flat(parts)
        elif getattr(item, "__is_annotated_types_grouped_metadata__", False):
            yield from _flat(item)
        else:
            yield item


def with_field_info(annotation: Any, field: Any) -> tuple[Any, Any, Callable[[], Any] | None]:
    """Return the annotation, the default, and the function that creates it, for the default `Field(..)` of pydantic."""
    from typing import Annotated, Any

    annotation = Annotated[Any if annotation is EMPTY else annotation, field]
    if field.is_required():
        return annotation, EMPTY, None
    default = field.get_default(call_default_factory=True)
    return annotation, default, lambda: field.get_default(call_default_factory=True)


class Constrained(Hint):
    """A hint with constraints, which apply to the value of the tool in both directions. ``None`` meets all of them."""

    def __init__(self, inner: Hint, checks: list[Check], keywords: dict[str, Any], description: str) -> None:
        self._inner = inner
        self._checks = checks
        self._keywords = keywords
        self.description = description
        self.wire = inner.wire
        self.expected = inner.expected
        self.constraints = inner.constraints
        if not checks:
            self.exact = inner.exact

    def unwrapped(self) -> Hint:
        return self._inner.unwrapped()

    def read(self, value: Any) -> Any:
        return self._checked(self._inner.read(value))

    def read_key(self, key: str) -> Any:
        return self._checked(self._inner.read_key(key))

    def write(self, value: Any) -> Any:
        written = self._inner.write(value)
        self._checked(value)
        return written

    def write_key(self, key: Any) -> Any:
        written = self._inner.write_key(key)
        self._checked(key)
        return written

    def _checked(self, value: Any) -> Any:
        if value is None:
            return value
        for check in self._checks:
            try:
                problem = check(value)
            except (TypeError, ValueError) as error:
                problem = f"cannot be checked: {error}"
            if problem is not None:
                raise invalid(problem)
        return value

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        schema = _constrain(self._inner.schema(schemas), self._keywords)
        return {**schema, "description": self.description} if self.description else schema


def _constrain(schema: dict[str, Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """Add keywords to the schemas of the types to which they apply."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [_constrain(branch, keywords) for branch in schema["anyOf"]]}
    names = _KEYWORDS.get(schema.get("type", ""), {})
    if schema.get("type") != "array" and ("format" in schema or "contentEncoding" in schema):
        # The bounds of a date are dates, and the length of bytes is not that of their text.
        return schema
    added = {names[keyword]: bound for keyword, bound in keywords.items() if keyword in names}
    return {**schema, **added}


_NUMBER = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
}
#: The keywords of JSON Schema for the constraints of each type.
_KEYWORDS: dict[str, dict[str, str]] = {
    "integer": _NUMBER,
    "number": _NUMBER,
    "string": {"min_length": "minLength", "max_length": "maxLength", "pattern": "pattern"},
    "array": {"min_length": "minItems", "max_length": "maxItems"},
    "object": {"min_length": "minProperties", "max_length": "maxProperties"},
}


def _check_kinds(inner: Hint, keywords: dict[str, Any], named: str) -> None:
    members = inner.members() if isinstance(inner, Union) else [inner]
    for keyword in keywords:
        if not any(member.constraints is None or keyword in member.constraints for member in members):
            raise HintError(f"is {named}, whose constraint `{keyword}` does not apply to its values")
    pattern = keywords.get("pattern")
    if pattern is not None:
        import re

        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise HintError(f"is {named}, whose pattern is invalid: {error}") from None


def _at_least(bound: Any) -> Check:
    return lambda value: None if value >= bound else f"is {show(value)}, below minimum {_bound_text(bound)}"


def _above(bound: Any) -> Check:
    return lambda value: None if value > bound else f"is {show(value)}, expected more than {_bound_text(bound)}"


def _at_most(bound: Any) -> Check:
    return lambda value: None if value <= bound else f"is {show(value)}, above maximum {_bound_text(bound)}"


def _below(bound: Any) -> Check:
    return lambda value: None if value < bound else f"is {show(value)}, expected less than {_bound_text(bound)}"


def _multiple_of(bound: Any) -> Check:
    def check(value: Any) -> str | None:
        if isinstance(value, float) or isinstance(bound, float):
            # 0.3 is a multiple of 0.1, although the division of the two floats has a remainder.
            try:
                ratio = value / bound
                is_multiple = abs(ratio - round(ratio)) <= 1e-9 * max(1.0, abs(ratio))
            except OverflowError as error:
                raise ValueError(str(error)) from None
        else:
            is_multiple = value % bound == 0
        return None if is_multiple else f"is {show(value)}, expected a multiple of {_bound_text(bound)}"

    return check


def _at_least_long(bound: int) -> Check:
    return lambda value: None if len(value) >= bound else f"has {_length(value)}, expected at least {bound}"


def _at_most_long(bound: int) -> Check:
    return lambda value: None if len(value) <= bound else f"has {_length(value)}, expected at most {bound}"


def _matching(bound: Any) -> Check:
    import re

    pattern = re.compile(bound)
    problem = f"expected text that matches {pattern.pattern}"
    return lambda value: None if pattern.search(value) else f"is {show(value)}, {problem}"


def _predicate(function: Callable[[Any], object]) -> Check:
    name = getattr(function, "__name__", "its predicate")
    return lambda value: None if function(value) else f"is {show(value)}, which `{name}` rejects"


def _length(value: Any) -> str:
    noun = "character" if isinstance(value, str) else "byte" if isinstance(value, bytes | bytearray) else "item"
    return count(len(value), noun)


def _bound_text(bound: Any) -> str:
    """Return the form of a bound in messages: 10, 2026-11-30."""
    return show(bound) if isinstance(bound, str | bytes) else str(bound)


_CONSTRAINTS: dict[str, tuple[str, Callable[[Any], Check]]] = {
    "ge": ("ge", _at_least),
    "gt": ("gt", _above),
    "le": ("le", _at_most),
    "lt": ("lt", _below),
    "multiple_of": ("multiple_of", _multiple_of),
    "min_length": ("min_length", _at_least_long),
    "max_length": ("max_length", _at_most_long),
    "pattern": ("pattern", _matching),
}
