"""Hints of values that are a single JSON value: numbers, strings, bytes, choices."""

from __future__ import annotations

from snakepit_bridge._hints.base import (
    BOUNDS,
    LENGTHS,
    Hint,
    HintError,
    InvalidError,
    choices,
    invalid,
    numpy_scalar,
    show,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from snakepit_bridge._hints.base import Schemas

#: All integers up to this magnitude have an exact float.
_MAX_EXACT_INTEGER = 2**53
#: The numbers of JSON, as patterns.
_INTEGER = r"-?(?:0|[1-9][0-9]*)"
_NUMBER = _INTEGER + r"(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"


def whole(value: object) -> Any:
    """Return the integer that equals a float, and any other value unchanged. The host applies the same rule."""
    if type(value) is float and value.is_integer() and abs(value) <= _MAX_EXACT_INTEGER:
        return int(value)
    return value


def _is_number(key: str, pattern: str) -> bool:
    """Return whether a key is a number of JSON. Python also converts ``" 5"``, ``"5_0"`` and ``"nan"``."""
    import re

    return re.fullmatch(pattern, key) is not None


class Null(Hint):
    """``None``."""

    wire = expected = "null"
    exact = type(None)
    constraints = frozenset()

    def read(self, value: Any) -> Any:
        if value is not None:
            raise self.mismatch(value)
        return value

    write = read

    def read_key(self, key: str) -> Any:
        if key != "null":
            raise invalid(f"is {show(key)}, expected null")

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "null"}


class Boolean(Hint):
    """``bool``. Numbers are not booleans."""

    wire = expected = "boolean"
    exact = bool
    constraints = frozenset()

    def read(self, value: Any) -> Any:
        if not isinstance(value, bool):
            raise self.mismatch(value)
        return value

    def write(self, value: Any) -> Any:
        return self.read(numpy_scalar(value))

    def read_key(self, key: str) -> Any:
        if key not in ("true", "false"):
            raise invalid(f"is {show(key)}, expected true or false")
        return key == "true"

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "boolean"}


class Integer(Hint):
    """``int``. Accepts 5.0 as 5, as JSON Schema does, and rejects booleans."""

    wire = expected = "integer"
    exact = int
    constraints = BOUNDS

    def read(self, value: Any) -> Any:
        number = whole(value)
        if not isinstance(number, int) or isinstance(number, bool):
            raise self.mismatch(value)
        return number

    def write(self, value: Any) -> Any:
        return self.read(numpy_scalar(value))

    def read_key(self, key: str) -> Any:
        try:
            if _is_number(key, _INTEGER):
                return int(key)
        except ValueError:  # It has more digits than Python converts.
            pass
        raise invalid(f"is {show(key)}, expected an integer")

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "integer"}


class Float(Hint):
    """``float``. Converts integers."""

    wire = expected = "float"
    exact = float
    constraints = BOUNDS

    def read(self, value: Any) -> Any:
        if type(value) is float:
            return value
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.mismatch(value)
        try:
            return float(value)
        except OverflowError:
            raise invalid("is an integer that is too large for a float; send one below 1.8e308") from None

    def write(self, value: Any) -> Any:
        return self.read(numpy_scalar(value))

    def read_key(self, key: str) -> Any:
        if not _is_number(key, _NUMBER):
            raise invalid(f"is {show(key)}, expected a number")
        return float(key)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "number"}


class Text(Hint):
    """``str``."""

    wire = expected = "string"
    exact = str
    constraints = LENGTHS | {"pattern"}

    def read(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise self.mismatch(value)
        return value

    write = read

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "string"}


def is_buffer(annotation: type) -> bool:
    """Return whether a hint is ``Buffer``, of any object with a buffer."""
    return annotation.__name__ == "Buffer" and annotation.__module__ in ("collections.abc", "typing_extensions")


class Binary(Hint):
    """``bytes``, ``bytearray``, ``memoryview`` or ``Buffer``. Clients that have only JSON send base64 text."""

    expected = "bytes, or base64 text"
    constraints = LENGTHS

    def __init__(self, kind: type, *, is_whole: bool) -> None:
        self._is_buffer = is_buffer(kind)
        self._kind = bytes if self._is_buffer else kind
        if is_whole:
            self.wire = "bytes"

    def read(self, value: Any) -> Any:
        if isinstance(value, str):
            from binascii import Error, a2b_base64

            try:
                value = a2b_base64(value, strict_mode=True)
            except (Error, ValueError):
                raise invalid("is not base64 text") from None
        if not isinstance(value, bytes | bytearray | memoryview):
            raise self.mismatch(value)
        return value if isinstance(value, self._kind) else self._kind(value)

    def write(self, value: Any) -> Any:
        if isinstance(value, bytes | bytearray | memoryview):
            return value
        if self._is_buffer:
            try:
                return memoryview(value)
            except TypeError:
                pass
        raise invalid(self.mismatch(value).problems[0][1].removesuffix(", or base64 text"))

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "string", "contentEncoding": "base64"}


class Choice(Hint):
    """``Literal`` or an ``Enum``: one of several values, each with a JSON form."""

    def __init__(self, members: list[tuple[Any, Any]]) -> None:
        #: Pairs of the JSON form and the value of the tool.
        self._members = members
        self.expected = choices([form for form, _ in members])
        #: The index of each form. The type is a part of the key, because 1, 1.0 and True are equal.
        self._indexes = {(type(form), form): index for index, (form, _) in reversed(list(enumerate(members)))}
        for form, _ in members:
            if type(form) not in _WIRES:
                raise HintError(
                    f"has the choice {show(form)}, which has no JSON form; use strings, numbers, booleans or None"
                )
        wires = {_WIRES[type(form)] for form, _ in members}
        self.wire = wires.pop() if len(wires) == 1 else "any"
        #: Whether all values have one of the forms.
        self.has_all_forms = True

    def forms(self) -> list[Any]:
        """Return the JSON forms."""
        return [form for form, _ in self._members]

    def accepts(self, form: Any) -> bool:
        """Return whether a value is one of the JSON forms."""
        return self._index(form) is not None

    def _index(self, form: Any) -> int | None:
        try:
            index = self._indexes.get((type(form), form))
            if index is None and type(form) in (int, float):
                # 5.0 is 5.
                other = whole(form) if type(form) is float else float(form)
                index = self._indexes.get((type(other), other))
        except (TypeError, OverflowError):  # Unhashable, or too large for a float.
            return None
        return index

    def read(self, value: Any) -> Any:
        index = self._index(value)
        if index is None:
            raise invalid(f"is {show(value)}, expected {self.expected}")
        return self._members[index][1]

    def read_key(self, key: str) -> Any:
        for form, value in self._members:
            if key == _key(form):
                return value
        raise invalid(f"is {show(key)}, expected {self.expected}")

    def write(self, value: Any) -> Any:
        for form, member in self._members:
            if value is member or (type(value) is type(member) and value == member):
                return form
        raise invalid(f"is {show(value)}, expected {self.expected}")

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        forms = [form for form, _ in self._members]
        schema: dict[str, Any] = {"const": forms[0]} if len(forms) == 1 else {"enum": forms}
        types = {_SCHEMA_TYPES[type(form)] for form in forms}
        return {**schema, "type": types.pop()} if len(types) == 1 else schema


_WIRES: dict[type, str] = {bool: "boolean", float: "float", int: "integer", str: "string", type(None): "null"}
_SCHEMA_TYPES = {**_WIRES, float: "number"}


def _key(form: object) -> str:
    """Return the key that JSON has for a value."""
    if form is None or isinstance(form, bool):
        return "null" if form is None else str(form).lower()
    return form if isinstance(form, str) else str(form)


class Enumeration(Choice):
    """An ``Enum`` class. The JSON form of a member is that of its value.

    Args:
        enum: The class.
        hint_of: Compiles the hint of values that are neither strings, numbers, booleans nor ``None``.
    """

    def __init__(self, enum: Any, hint_of: Callable[[Any], Hint]) -> None:
        self._enum = enum
        self.cls = enum
        #: The members whose values have other types, with the hints of these types.
        self._others: list[tuple[Hint, Any]] = []
        members = []
        for member in enum.__members__.values():
            form = member.value
            if type(form) not in _WIRES:
                self._others.append((self._hint(member, hint_of), member))
            elif (form, member) not in members:
                members.append((form, member))
        if not members and not self._others:
            raise HintError(f"is the enum `{enum.__qualname__}`, which has no members")
        super().__init__(members)
        if self._others:
            self.has_all_forms = False
            self.wire = "any"
            self.expected = f"the value of a member of `{enum.__qualname__}`"

    def _hint(self, member: Any, hint_of: Callable[[Any], Hint]) -> Hint:
        kind = type(member.value)
        if kind is not object:
            try:
                return hint_of(kind)
            except HintError:
                pass
        raise HintError(
            f"is the enum `{self._enum.__qualname__}`, whose member `{member.name}` has no JSON form: its value is "
            f"{show(member.value)}"
        )

    def read(self, value: Any) -> Any:
        for hint, member in self._others:
            try:
                if hint.read(value) == member.value:
                    return member
            except InvalidError:
                continue
        return super().read(value)

    def write(self, value: Any) -> Any:
        if not isinstance(value, self._enum):
            raise invalid(f"is {show(value)}, expected a member of `{self._enum.__qualname__}`")
        return next((hint.write(value.value) for hint, member in self._others if member is value), value.value)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        def build(_: str) -> dict[str, Any]:
            branches = [hint.schema(schemas) for hint, _ in self._others]
            if self._members:
                schema = {"enum": self.forms(), **super(Enumeration, self).schema(schemas)}
                schema.pop("const", None)
                branches.insert(0, schema)
            schema = branches[0] if len(branches) == 1 else {"anyOf": branches}
            doc = self._enum.__dict__.get("__doc__")
            # Before Python 3.12, each enum without a docstring has this one.
            return {"description": doc.strip(), **schema} if doc and doc != "An enumeration." else schema

        return schemas.reference(self._enum, self._enum.__name__, build)


class Flags(Hint):
    """An ``IntFlag`` or ``Flag`` class. The JSON form is the integer."""

    wire = "integer"

    def __init__(self, flag: Any) -> None:
        if not flag.__members__:
            raise HintError(f"is the enum `{flag.__qualname__}`, which has no members")
        self._flag = flag
        self.expected = f"flags of `{flag.__qualname__}`"

    def read(self, value: Any) -> Any:
        number = whole(value)
        if not isinstance(number, int) or isinstance(number, bool):
            raise self.mismatch(value)
        try:
            return self._flag(number)
        except ValueError:
            raise invalid(f"is {show(number)}, expected {self.expected}") from None

    def read_key(self, key: str) -> Any:
        return self.read(Integer().read_key(key))

    def write(self, value: Any) -> Any:
        if not isinstance(value, self._flag):
            raise self.mismatch(value)
        return value.value

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "integer"}
