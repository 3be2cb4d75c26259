"""Hints of lists, sets, tuples and maps."""

from __future__ import annotations

import sys

from snakepit_bridge._hints.base import LENGTHS, Hint, InvalidError, collect, invalid, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from typing import Any

    from snakepit_bridge._hints.base import Schemas


def as_list(hint: Hint, value: Any) -> Any:
    """Return a list from JSON. Clients may send a list of numbers as an array.

    Raises:
        InvalidError: The value is not a list.
    """
    if type(value) is list:
        return value
    if isinstance(value, list | tuple):
        return list(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray) and value.ndim:
        return value.tolist()
    raise hint.mismatch(value)


class Items(Hint):
    """A list, set or other collection of any length."""

    wire = expected = "list"
    constraints = LENGTHS

    def __init__(self, item: Hint, make: Any, written: Any, *, unique: bool = False) -> None:
        self._item = item
        #: Creates the collection from a list. ``None`` for a list.
        self._make = make
        #: The types of collections that the tool may return.
        self._written = written
        self._unique = unique

    def read(self, value: Any) -> Any:
        items = self._each(as_list(self, value), self._item.read)
        if self._make is None:
            return items
        try:
            return self._make(items)
        except (TypeError, ValueError) as error:  # An item of a set that cannot be hashed.
            raise invalid(f"cannot be converted to a `{self._make.__name__}`: {error}") from None

    def write(self, value: Any) -> Any:
        if not isinstance(value, self._written) or isinstance(value, str | bytes):
            raise self.mismatch(value)
        return self._each(value if isinstance(value, list | tuple) else _ordered(value), self._item.write)

    def _each(self, items: Any, convert: Callable[[Any], Any]) -> Any:
        exact = self._item.exact
        if type(self._item).read is Hint.read or (exact is not None and set(map(type, items)) <= {exact}):
            return items
        return convert_each((convert, item) for item in items)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        schema = {"type": "array", "items": self._item.schema(schemas)}
        return {**schema, "uniqueItems": True} if self._unique else schema


def convert_each(items: Iterable[tuple[Callable[[Any], Any], Any]]) -> list[Any]:
    """Convert each item with its converter. Report the problems of all items, each with its index."""
    converted: list[Any] = []
    problems: list[tuple[str, str]] = []
    for index, (convert, item) in enumerate(items):
        try:
            converted.append(convert(item))
        except InvalidError as error:
            collect(problems, f"[{index}]", error)
    if problems:
        raise InvalidError(problems)
    return converted


def _ordered(items: Any) -> list[Any]:
    """Return the items of a collection. Those of a set are sorted, because their order would differ between workers."""
    if not isinstance(items, set | frozenset):
        return list(items)
    try:
        return sorted(items)
    except TypeError:
        return sorted(items, key=repr)


class Positions(Hint):
    """A tuple whose items have separate hints.

    Args:
        items: The hints of the first items.
        rest: The hint of any number of items after them, as in ``tuple[int, *tuple[str, ...]]``.
        last: The hints of the last items.
    """

    wire = expected = "list"
    constraints = LENGTHS

    def __init__(self, items: list[Hint], rest: Hint | None = None, last: Sequence[Hint] = ()) -> None:
        self._items = items
        self._rest = rest
        self._last = last

    def read(self, value: Any) -> Any:
        values = as_list(self, value)
        return tuple(self._each(values, [item.read for item in self._hints(len(values))]))

    def write(self, value: Any) -> Any:
        if not isinstance(value, tuple | list):
            raise self.mismatch(value)
        return self._each(value, [item.write for item in self._hints(len(value))])

    def _hints(self, length: int) -> list[Hint]:
        """Return the hint of each item."""
        least = len(self._items) + len(self._last)
        if length < least or (self._rest is None and length > least):
            wanted = str(least) if self._rest is None else f"at least {least}"
            raise invalid(f"has {count(length, 'item')}, expected {wanted}")
        return [*self._items, *([] if self._rest is None else [self._rest] * (length - least)), *self._last]

    def _each(self, values: Any, converters: list[Callable[[Any], Any]]) -> list[Any]:
        return convert_each(zip(converters, values, strict=True))

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        least = len(self._items) + len(self._last)
        schema: dict[str, Any] = {"type": "array", "minItems": least}
        if self._rest is None:
            schema["maxItems"] = least
        if self._items:
            schema["prefixItems"] = [item.schema(schemas) for item in self._items]
        if self._rest is not None:
            # The position of the last items depends on the length.
            others = [item.schema(schemas) for item in (self._rest, *self._last)]
            schema["items"] = others[0] if len(others) == 1 else {"anyOf": others}
        return schema


def count(number: int, noun: str) -> str:
    """Return "1 item", "2 items"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class Entries(Hint):
    """A map whose keys and values have hints. JSON has only strings as keys."""

    wire = expected = "map"
    constraints = LENGTHS

    def __init__(self, key: Hint, value: Hint, make: Any, written: Any) -> None:
        self._key = key
        self._value = value
        #: Creates the map from a dict. ``None`` for a dict.
        self._make = make
        self._written = written

    def read(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise self.mismatch(value)
        entries = self._each(value, self._key.read_key, self._value.read)
        return entries if self._make is None else self._make(entries)

    def write(self, value: Any) -> Any:
        if not isinstance(value, self._written):
            raise self.mismatch(value)
        entries = value if isinstance(value, dict) else dict(value)
        return self._each(entries, self._key.write_key, self._value.write)

    def _each(
        self, entries: dict[Any, Any], key_of: Callable[[Any], Any], value_of: Callable[[Any], Any]
    ) -> dict[Any, Any]:
        if _is_unchanged(self._key, entries) and _is_unchanged(self._value, entries.values()):
            return entries
        converted: dict[Any, Any] = {}
        problems: list[tuple[str, str]] = []
        for key, value in entries.items():
            try:
                new = key_of(key)
                if new in converted:
                    raise invalid(f"is {show(key)}, which another key equals")
            except InvalidError as error:
                collect(problems, f" key {show(key)}", error)
                continue
            try:
                converted[new] = value_of(value)
            except InvalidError as error:
                collect(problems, f"[{quoted(key)}]", error)
        if problems:
            raise InvalidError(problems)
        return converted

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        value = self._value.schema(schemas)
        schema: dict[str, Any] = {"type": "object", "additionalProperties": value or True}
        keys = self._key.schema(schemas)
        if keys.get("type") in ("integer", "number", "boolean"):
            # Keys are strings.
            return schema
        rest = {keyword: value for keyword, value in keys.items() if keyword != "type"}
        if rest and "anyOf" not in rest:
            schema["propertyNames"] = rest
        return schema


def quoted(key: object) -> str:
    """Return a key in double quotes, as JSON writes it."""
    return f'"{key}"' if isinstance(key, str) and key.isprintable() and '"' not in key else show(key)


def _is_unchanged(hint: Hint, values: Collection[Any]) -> bool:
    exact = hint.exact
    return type(hint).read is Hint.read or (exact is not None and set(map(type, values)) <= {exact})
