"""Hints for numpy arrays and numbers. Must only be imported if numpy is imported."""

from __future__ import annotations

import numpy as np

from snakepit_bridge._hints.advice import unsupported
from snakepit_bridge._hints.array_problems import check_list, conversion_error, equal
from snakepit_bridge._hints.base import Hint, HintError, describe, invalid
from snakepit_bridge._hints.containers import count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from snakepit_bridge._hints.base import Schemas

#: The format of the schemas of arrays, which distinguishes them from lists.
FORMAT = "ndarray"
#: The kinds of data types that are plain numbers: booleans, integers, floats, complex numbers.
_NUMBERS = "biufc"


class Array(Hint):
    """A numpy array, whose data types and shape may be part of the hint.

    Args:
        types: The accepted data types. An abstract type, such as `np.floating`, accepts its subtypes. Empty for any.
        shape: The length of each axis, ``None`` for any length. ``None`` for any shape.
    """

    wire = "tensor"

    def __init__(self, types: list[Any], shape: list[int | None] | None) -> None:
        self._types = types
        self._shape = shape
        self._has_texts = any(issubclass(kind, np.str_) for kind in types)
        self._has_objects = any(issubclass(kind, np.object_) for kind in types)
        if self._has_texts or self._has_objects:
            # Such arrays are lists of JSON, which the runtime does not convert.
            self.wire = "any" if shape is None else "list"
        names = " or ".join(kind.__name__ for kind in types)
        lengths = "" if shape is None else f" with {count(len(shape), 'axis').replace('axiss', 'axes')}"
        self.expected = f"array{f' of {names}' if names else ''}{lengths}"

    def read(self, value: Any) -> Any:
        if isinstance(value, bool | int | float | str | list):
            value = self._converted(value)
        if not isinstance(value, np.ndarray):
            raise self.mismatch(value)
        return self._with_type(self._checked_shape(value))

    def _converted(self, value: Any) -> Any:
        """Return a list or an item of it as an array."""
        if self._has_objects:
            return np.asarray(value, object)
        if isinstance(value, str) and not self._has_texts:
            raise self.mismatch(value)
        try:
            array = np.asarray(value)
        except (ValueError, OverflowError) as error:
            check_list(value, is_text=self._has_texts)
            raise invalid(f"cannot be converted to an array: {error}") from None
        if self._has_texts:
            # Numbers among strings become strings.
            check_list(value, is_text=True)
        elif array.dtype.kind not in _NUMBERS:
            check_list(value)
            raise invalid(f"has items of dtype `{array.dtype.name}`, expected {self.expected}")
        return array

    def write(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise self.mismatch(value)
        if self._types and not any(np.issubdtype(value.dtype, kind) for kind in self._types):
            raise invalid(f"is an array of {value.dtype.name}, expected {self.expected}")
        return self._checked_shape(value)

    def _checked_shape(self, array: Any) -> Any:
        wanted = self._shape
        if wanted is None:
            return array
        if len(wanted) != array.ndim or any(map(_differs, wanted, array.shape)):
            shown = ", ".join("any" if length is None else str(length) for length in wanted)
            raise invalid(f"has the shape {array.shape}, expected ({shown}{',' if len(wanted) == 1 else ''})")
        return array

    def _with_type(self, array: Any) -> Any:
        if not self._types or any(np.issubdtype(array.dtype, kind) for kind in self._types):
            return array
        if array.size == 0:
            return array.astype(_concrete(self._types[0]))
        targets = [np.dtype(_concrete(kind)) for kind in self._types]
        for target in targets:
            if array.dtype.kind == "b":
                # A boolean is not a number.
                continue
            if np.can_cast(array.dtype, target, "same_kind") or (array.dtype.kind, target.kind) in _WHOLE:
                with np.errstate(all="ignore"):
                    converted = array.astype(target)
                # Floats may be rounded to a shorter type. All other values must stay the same.
                if target.kind in "fc" and array.dtype.kind in "fc":
                    same = np.isfinite(converted) | ~np.isfinite(array)
                else:
                    same = equal(array, converted)
                if same.all():
                    return converted
        numbers = [target for target in targets if target.kind in _NUMBERS]
        if not numbers or array.dtype.kind not in _NUMBERS:
            raise invalid(f"is an array of {array.dtype.name}, expected {self.expected}")
        raise conversion_error(array, numbers)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        item = self._item_schema()
        if self._shape is None:
            items = _nested(item) if item else {}
            return {"type": "array", "format": FORMAT, "items": items}
        schema = item
        for length in reversed(self._shape):
            bounds = {} if length is None else {"minItems": length, "maxItems": length}
            schema = {"type": "array", "items": schema, **bounds}
        return {**schema, "format": FORMAT}

    def _item_schema(self) -> dict[str, Any]:
        kinds = {np.dtype(_concrete(kind)).kind for kind in self._types}
        if self._has_texts or self._has_objects:
            return {"type": "string"} if kinds == {"U"} else {}
        if kinds and kinds <= {"i", "u"}:
            return {"type": "integer"}
        return {"type": "boolean"} if kinds == {"b"} else {"type": "number"} if kinds else {}


#: The kinds of a data type whose values may be converted if they stay the same: whole floats to integers, and integers
#: between signed and unsigned.
_WHOLE = frozenset({("f", "i"), ("f", "u"), ("i", "u"), ("u", "i"), ("i", "f"), ("u", "f")})


def _differs(wanted: int | None, length: int) -> bool:
    return wanted is not None and wanted != length


def _nested(item: dict[str, Any]) -> dict[str, Any]:
    """Return the item schema of an array with any number of axes: numbers, or lists."""
    return {"anyOf": [item, {"type": "array"}]}


def _concrete(kind: Any) -> Any:
    """Return the type to which values are converted for an abstract type."""
    for abstract, concrete in (
        (np.unsignedinteger, np.uint64),
        (np.integer, np.int64),
        (np.complexfloating, np.complex128),
        (np.floating, np.float64),
        (np.inexact, np.float64),
        (np.number, np.float64),
        (np.generic, np.float64),
    ):
        if kind is abstract:
            return concrete
    return kind


class Scalar(Hint):
    """A numpy number, such as `np.float32`."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._array = Array([kind], [])
        letter = np.dtype(_concrete(kind)).kind
        self.wire = {"b": "boolean", "i": "integer", "u": "integer", "f": "float"}.get(letter, "any")
        self.expected = kind.__name__
        if letter not in "biuf":
            raise unsupported(kind, kind)

    def read(self, value: Any) -> Any:
        is_boolean = isinstance(value, bool)
        if not isinstance(value, int | float) or is_boolean != (self.wire == "boolean"):
            raise self.mismatch(value)
        return self._array.read(value)[()]

    def write(self, value: Any) -> Any:
        if not isinstance(value, self._kind):
            raise invalid(f"{describe(value)}, expected `numpy.{self.expected}`")
        return value.item()

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": {"boolean": "boolean", "integer": "integer"}.get(self.wire, "number")}


def array_hint(annotation: Any, arguments: tuple[Any, ...]) -> Hint:
    """Return the hint of `np.ndarray` with its arguments, as in `npt.NDArray[np.float32]`.

    Raises:
        HintError: The data type or the shape has no meaning as a hint.
    """
    shape = _shape(annotation, arguments[0]) if arguments else None
    types = _types(annotation, arguments[1]) if len(arguments) > 1 else []
    for kind in types:
        if np.dtype(_concrete(kind)).kind not in f"{_NUMBERS}UO":
            raise HintError(f"is `{annotation}`, whose items have no JSON form; use numbers or strings")
    return Array(types, shape)


def _types(annotation: Any, part: Any) -> list[Any]:
    """Return the item types in `np.dtype[..]`, a union of types, or one type. Empty for any type."""
    if isinstance(part, type) and issubclass(part, np.generic):
        return [] if part is np.generic else [part]
    origin = getattr(part, "__origin__", None)
    if isinstance(origin, type) and issubclass(origin, np.generic):
        # The argument of `np.floating[Any]` is its size.
        return [origin]
    if str(part) == "typing.Any" or type(part).__name__ == "TypeVar":
        return []
    arguments = getattr(part, "__args__", ())
    if not arguments or (origin is not np.dtype and isinstance(origin, type)):
        raise HintError(f"is `{annotation}`, whose data type is unknown")
    return [kind for argument in arguments for kind in _types(annotation, argument)]


def _shape(annotation: Any, shape: Any) -> list[int | None] | None:
    arguments = getattr(shape, "__args__", None)
    if getattr(shape, "__origin__", None) is not tuple or not arguments or Ellipsis in arguments:
        return None
    lengths: list[int | None] = []
    for axis in arguments:
        values: tuple[Any, ...] = getattr(axis, "__args__", ())
        if len(values) == 1 and isinstance(values[0], int):
            lengths.append(values[0])
        elif axis is int or str(axis) in ("typing.Any", "Any"):
            lengths.append(None)
        else:
            raise HintError(f"is `{annotation}`, whose axis `{axis}` is neither `int` nor `Literal` of one length")
    return lengths
