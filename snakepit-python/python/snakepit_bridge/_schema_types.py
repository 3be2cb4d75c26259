"""Python's notation for the types of JSON Schemas, for signatures and for typed stubs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The type of any value.
ANY = "Any"
#: The type for numpy arrays.
ARRAY = "NDArray[Any]"

_SCALARS = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
#: The classes that a caller may pass instead of a string of this format.
_FORMATS = {
    "date": "date",
    "date-time": "datetime",
    "duration": "timedelta",
    "ipv4": "IPv4Address",
    "ipv6": "IPv6Address",
    "path": "PurePath",
    "time": "time",
    "uuid": "UUID",
}
#: The deepest nesting that is described.
_MAX_DEPTH = 24


class SchemaTypes:
    """The types of the values that a schema describes.

    Args:
        root: The schema with the definitions, to which references refer.
        is_argument: Whether programs pass the values. They may pass more types than they receive.
        define: Returns the name of a class for a map with known keys, from a proposed name and its schema.
    """

    def __init__(
        self,
        root: Mapping[str, Any],
        *,
        is_argument: bool,
        define: Callable[[str, Mapping[str, Any], SchemaTypes], str],
    ) -> None:
        definitions = root.get("$defs")
        self._definitions: Mapping[str, Any] = definitions if isinstance(definitions, Mapping) else {}
        self.is_argument = is_argument
        self._define = define

    def annotation(self, schema: object, name: str, depth: int = 0) -> str:
        """Return the type of a schema. ``name`` is a name for classes in it."""
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return ANY
        if isinstance(reference := schema.get("$ref"), str):
            target = reference.removeprefix("#/$defs/")
            return self.annotation(self._definitions.get(target), target, depth + 1)
        if "const" in schema:
            return _literal([schema["const"]])
        if isinstance(choices := schema.get("enum"), list):
            return _literal(choices)
        for key in ("anyOf", "oneOf"):
            if isinstance(parts := schema.get(key), list):
                return self._union(parts, name, depth)
        if isinstance(parts := schema.get("allOf"), list) and len(parts) == 1:
            return self.annotation(parts[0], name, depth + 1)
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._union([{**schema, "type": each} for each in kind], name, depth)
        if kind == "string":
            return self._text(schema)
        if kind == "array":
            return self._array(schema, name, depth)
        if kind == "object":
            return self._object(schema, name, depth)
        return _SCALARS.get(kind, ANY) if isinstance(kind, str) else ANY

    def _union(self, parts: list[Any], name: str, depth: int) -> str:
        # A table or an image may also be passed as an object of its class.
        if any(_is_open_list(part) and not (_is_array(part) and not self.is_argument) for part in parts):
            return ANY
        types = [self.annotation(part, name, depth + 1) for part in parts]
        if self.is_argument and types[:2] == ["float", "str"]:
            types.insert(1, "Decimal")
        return union(types)

    def _text(self, schema: Mapping[str, Any]) -> str:
        if "contentEncoding" in schema:
            if "contentMediaType" in schema:
                return ANY
            return "bytes | str" if self.is_argument else "bytes"
        other = _FORMATS.get(str(schema.get("format"))) if self.is_argument else None
        return f"str | {other}" if other else "str"

    def _array(self, schema: Mapping[str, Any], name: str, depth: int) -> str:
        if not _is_array(schema):
            return self._list(schema, name, depth)
        # Callers may also pass nested lists.
        return union([ARRAY, self._list(schema, name, depth)]) if self.is_argument else ARRAY

    def _list(self, schema: Mapping[str, Any], name: str, depth: int) -> str:
        if isinstance(parts := schema.get("prefixItems"), list):
            # Those after the first ones, if any.
            parts = [*parts, *([schema["items"]] if isinstance(schema.get("items"), Mapping) else [])]
            item = union(self.annotation(part, name, depth + 1) for part in parts) if parts else ANY
        elif not schema.get("items"):
            # Perhaps a tensor or a column.
            return ANY
        else:
            item = self.annotation(schema["items"], name, depth + 1)
            if item == ANY:
                return ANY
        if not self.is_argument:
            return f"list[{item}]"
        # A string is a sequence of strings.
        return f"list[{item}] | tuple[{item}, ...]" if "str" in item else f"Sequence[{item}]"

    def _object(self, schema: Mapping[str, Any], name: str, depth: int) -> str:
        if schema.get("properties"):
            title = schema.get("title")
            return self._define(title if isinstance(title, str) and title else name, schema, self)
        others = schema.get("additionalProperties")
        value = self.annotation(others, name, depth + 1) if isinstance(others, Mapping) else ANY
        return f"Mapping[str, {value}]" if self.is_argument else f"dict[str, {value}]"


def union(types: Iterable[str]) -> str:
    """Return the union of types. ``None`` comes last."""
    parts: dict[str, None] = {}
    for each in types:
        # Brackets may contain unions.
        for part in _split(each):
            parts[part] = None
    if ANY in parts or not parts:
        return ANY
    names = [part for part in parts if part != "None"]
    return " | ".join([*names, "None"] if "None" in parts else names)


def _split(annotation: str) -> list[str]:
    parts, depth, quote, start = [], 0, "", 0
    for index, char in enumerate(annotation):
        if quote:
            if char == quote and annotation[index - 1] != "\\":
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in "[]":
            depth += 1 if char == "[" else -1
        elif char == "|" and depth == 0:
            parts.append(annotation[start:index].strip())
            start = index + 1
    return [*parts, annotation[start:].strip()]


def _literal(choices: list[Any]) -> str:
    if not choices or not all(isinstance(choice, str | bool | int | None) for choice in choices):
        return ANY
    names = [_quoted(choice) if isinstance(choice, str) else repr(choice) for choice in choices if choice is not None]
    literal = f"Literal[{', '.join(names)}]" if names else None
    return union([*([literal] if literal else []), *(["None"] if None in choices else [])])


def _quoted(text: str) -> str:
    """Return a literal in double quotes. JSON escapes are the same as Python's, except for surrogate pairs."""
    return json.dumps(text) if text.isascii() else repr(text)


def _is_array(schema: object) -> bool:
    """Return whether a schema is that of a numpy array."""
    return isinstance(schema, Mapping) and schema.get("type") == "array" and schema.get("format") == "ndarray"


def _is_open_list(schema: object) -> bool:
    """Return whether a schema accepts lists with any content."""
    if not isinstance(schema, Mapping) or schema.get("type") != "array":
        return False
    return not schema.get("items") and not schema.get("prefixItems")
