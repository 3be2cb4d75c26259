"""The base class of compiled hints, and the problems that they find."""

from __future__ import annotations

import sys

from snakepit_bridge._contract import PLAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from snakepit_bridge._hints.scalars import Choice

#: The maximum number of problems that one error describes.
MAX_PROBLEMS = 32

#: The constraints of numbers, and of values with a length.
BOUNDS = frozenset({"ge", "gt", "le", "lt", "multiple_of"})
LENGTHS = frozenset({"min_length", "max_length"})

#: The maximum length of a value in a message.
_MAX_SHOWN = 64


class HintError(Exception):
    """A hint that is not supported. The message is a predicate: "is `complex`, which has no JSON form"."""


class InvalidError(Exception):
    """A value contradicts its hint.

    The argument is the list of its :attr:`problems`.
    """

    @property
    def problems(self) -> list[tuple[str, str]]:
        """The path of each invalid part, such as ``[3].price``, with a predicate, such as "is missing"."""
        problems: list[tuple[str, str]] = self.args[0]
        return problems


def invalid(problem: str) -> InvalidError:
    """Return the error for a value as a whole."""
    return InvalidError([("", problem)])


def collect(problems: list[tuple[str, str]], step: str, error: InvalidError) -> None:
    """Add the problems of a part.

    Raises:
        InvalidError: There are more problems than a message shows. It has one more than that.
    """
    problems += [(step + path, problem) for path, problem in error.problems]
    if len(problems) > MAX_PROBLEMS:
        raise InvalidError(problems[: MAX_PROBLEMS + 1])


def shown(problems: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the problems that a message shows. The last one says whether there are more."""
    if len(problems) <= MAX_PROBLEMS:
        return problems
    path, problem = problems[MAX_PROBLEMS - 1]
    return [*problems[: MAX_PROBLEMS - 1], (path, f"{problem}, and more are wrong")]


def describe(value: object) -> str:
    """Describe the type of a value: "is a string", "is a `decimal.Decimal`"."""
    kind = PLAIN.get(type(value))
    if kind is None:
        return f"is a `{type_name(type(value))}`"
    return f"is {'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def type_name(kind: type) -> str:
    """Return the name of a type, with its module unless it is a builtin."""
    module = kind.__module__
    return kind.__qualname__ if module in ("builtins", "__main__") else f"{module}.{kind.__qualname__}"


def show(value: object) -> str:
    """Return a short form of a value for a message."""
    if isinstance(value, list | tuple | dict | set | frozenset):
        return describe(value).removeprefix("is ")
    if isinstance(value, str | bytes):
        # The representation of a whole text may be large.
        value = value[: _MAX_SHOWN + 1]
    try:
        text = repr(value)
    except Exception:
        text = f"a `{type_name(type(value))}`"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def choices(values: Iterable[object]) -> str:
    """Return "'a', 'b' or 'c'"."""
    shown = [show(value) for value in values]
    return f"{', '.join(shown[:-1])} or {shown[-1]}" if len(shown) > 1 else "".join(shown)


def convert(make: Callable[..., Any], *values: Any, **fields: Any) -> Any:
    """Call a constructor of the adapter.

    Its ``ValueError``, ``TypeError`` or ``AssertionError`` is a problem of the value.

    Raises:
        InvalidError: The constructor rejected the value.
    """
    try:
        return make(*values, **fields)
    except (ValueError, TypeError, AssertionError) as error:
        text = " ".join(str(error.args[0] if error.args else "").split()) or type_name(type(error))
        raise invalid(f"is invalid: {text}") from error


class Schemas:
    """Creates the schemas of one tool. Classes become definitions, to which schemas refer.

    Args:
        is_result: Whether the schemas describe values that the tool returns.
    """

    def __init__(self, *, is_result: bool) -> None:
        self.is_result = is_result
        self.definitions: dict[str, Any] = {}
        self._names: dict[Any, str] = {}

    def reference(self, key: Any, name: str, build: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """Return a reference to the definition of a class, and create it first if it is new.

        ``build`` receives the name of the definition.
        """
        known = self._names.get(key)
        if known is None:
            known = self.free_name(name)
            self._names[key] = known
            # Reserved before it is built, because the class may contain itself.
            self.definitions[known] = {}
            self.definitions[known] = build(known)
        return {"$ref": f"#/$defs/{known}"}

    def free_name(self, name: str) -> str:
        """Return a name that no other definition has."""
        name = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
        free, number = name, 2
        while free in self.definitions:
            free, number = f"{name}{number}", number + 1
        return free

    def complete(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return a schema with the definitions to which it refers."""
        needed: dict[str, Any] = {}
        waiting = [schema]
        while waiting:
            for name in _references(waiting.pop()):
                if name not in needed:
                    needed[name] = self.definitions[name]
                    waiting.append(needed[name])
        return {**schema, "$defs": needed} if needed else schema


def _references(schema: Any) -> Iterable[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value.removeprefix("#/$defs/")
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _references(item)


class Hint:
    """A compiled hint. Reads values from JSON, and writes values as JSON. Accepts any value by default."""

    #: The type for the check of the host.
    wire = "any"
    #: If set, all values of exactly this type are valid and stay unchanged, in both directions.
    exact: type | None = None
    #: The accepted values, for messages.
    expected = "any value"
    #: The constraints in `Annotated` that apply to the values. ``None`` if any may apply.
    constraints: frozenset[str] | None = None
    #: The class of the values that the tool has, if the hint is a class with fields or the like.
    cls: type | None = None
    #: Whether the JSON form is a map of fields.
    has_fields = False

    def unwrapped(self) -> Hint:
        """Return the hint without its constraints. For a recursive hint, return its target."""
        return self

    def class_tag(self) -> tuple[str, Choice] | None:
        """Return the name and the value of the entry of a map that identifies its class."""
        return None

    def choice_fields(self) -> dict[str, tuple[Choice, bool]]:
        """Return the fields with a ``Literal`` or an enum as their hint, and whether each is required."""
        return {}

    def read(self, value: Any) -> Any:
        """Return the value that the tool receives.

        Raises:
            InvalidError: The value contradicts the hint.
        """
        return value

    def write(self, value: Any) -> Any:
        """Return the JSON form of a tool's value.

        Raises:
            InvalidError: The value contradicts the hint.
        """
        return value

    def read_key(self, key: str) -> Any:
        """Return the key of a map for a key in JSON, which is always a string."""
        return self.read(key)

    def write_key(self, key: Any) -> Any:
        """Return the JSON form of a map key."""
        return self.write(key)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        """Return the JSON Schema of the hint."""
        del schemas
        return {}

    def mismatch(self, value: object) -> InvalidError:
        """Return the error for a value of another type."""
        return invalid(f"{describe(value)}, expected {self.expected}")


class AnyHint(Hint):
    """``Any``, ``object``, or no hint."""


ANY = AnyHint()


def numpy_scalar(value: object) -> Any:
    """Return the Python number of a numpy scalar, and any other value unchanged."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    return value
