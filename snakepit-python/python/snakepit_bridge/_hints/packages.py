"""Hints of registered classes, and of tables, images and tensors. Imported only if such a class appears."""

from __future__ import annotations

import sys

from snakepit_bridge import _packages
from snakepit_bridge._converters import full_name, registered
from snakepit_bridge._encoded import Encoded
from snakepit_bridge._hints.base import Hint, InvalidError, describe, invalid, type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from snakepit_bridge._converters import Converter
    from snakepit_bridge._hints.base import Schemas


def package_hint(cls: type) -> Hint | None:
    """Return the hint of a registered class, or of a table, image or tensor. ``None`` for another class."""
    converter = registered(cls)
    if converter is not None:
        return Converted(cls, converter)
    if cls.__name__ in _MISSING and full_name(cls).startswith("pandas."):
        return Missing(cls)
    name = _packages.kind_of(cls) or next(filter(lambda name: _is_kind(cls, name), _PLAIN_FORMS), None)
    return None if name is None else Loaded(cls, name)


#: The classes of missing values in pandas.
_MISSING = ("NAType", "NaTType")
#: The classes whose form is a list, or that of another class.
_PLAIN_FORMS = ("pandas.Index", "duckdb.DuckDBPyRelation")


def _is_kind(cls: type, name: str) -> bool:
    kind = _packages.class_named(name)
    return isinstance(kind, type) and issubclass(cls, kind)


class Converted(Hint):
    """A class with a registered converter."""

    def __init__(self, cls: type, converter: Converter) -> None:
        self._cls = cls
        self._converter = converter
        self.expected = f"the form of a `{type_name(cls)}`"

    def read(self, value: Any) -> Any:
        try:
            return self._converter.read(value)
        except (ValueError, TypeError, LookupError) as error:
            raise invalid(f"is invalid as a `{type_name(self._cls)}`: {_text(error)}") from error

    def write(self, value: Any) -> Any:
        if not isinstance(value, self._cls):
            raise invalid(f"{describe(value)}, expected a `{type_name(self._cls)}`")
        return value


class Missing(Hint):
    """``NA`` or ``NaT`` of pandas, whose form is null."""

    wire = expected = "null"

    def __init__(self, cls: Any) -> None:
        self.cls = cls
        pandas = sys.modules["pandas"]
        self._value = pandas.NA if cls.__name__ == "NAType" else pandas.NaT

    def read(self, value: Any) -> Any:
        if value is not None:
            raise self.mismatch(value)
        return self._value

    def write(self, value: Any) -> Any:
        if value is not self._value:
            raise invalid(f"{describe(value)}, expected `{self._value!r}`")

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        del schemas
        return {"type": "null"}


class Loaded(Hint):
    """A table, image or tensor. Accepts its encoded form, and lists, maps or arrays."""

    def __init__(self, cls: type, name: str) -> None:
        self._cls: Any = cls
        self._name = name
        self.expected = f"a `{name}`"

    def read(self, value: Any) -> Any:
        try:
            made = self._made(value)
            return made if isinstance(made, self._cls) else self._cls(made)
        except InvalidError:
            raise
        except Exception as error:
            raise invalid(f"cannot be converted to a `{self._name}`: {_text(error)}") from error

    def _made(self, value: Any) -> Any:
        if isinstance(value, self._cls):
            return value
        name = self._name
        if name == "torch.Tensor":
            return self._tensor(value)
        if name == "duckdb.DuckDBPyRelation":
            return self._relation(value)
        if isinstance(value, Encoded):
            return _packages.load(value, name)
        if isinstance(value, str) and name == "PIL.Image.Image":
            from binascii import a2b_base64

            value = a2b_base64(value, strict_mode=True)
        if isinstance(value, bytes):
            return _packages.load(Encoded(value, "", name))
        return self._from_plain(value)

    def _from_plain(self, value: Any) -> Any:
        name = self._name
        numpy = sys.modules.get("numpy")
        is_array = numpy is not None and isinstance(value, numpy.ndarray)
        if name == "PIL.Image.Image" and is_array:
            return sys.modules["PIL.Image"].fromarray(value)
        if not is_array and not isinstance(value, list | dict):
            raise self.mismatch(value)
        if name in ("pyarrow.Table", "pyarrow.RecordBatch"):
            make = self._cls.from_pydict if isinstance(value, dict) else self._cls.from_pylist
            return make(value)
        if name == "pyarrow.Array":
            return sys.modules["pyarrow"].array(value)
        if name == "pyarrow.ChunkedArray":
            return sys.modules["pyarrow"].chunked_array([value])
        if name == "PIL.Image.Image":
            raise self.mismatch(value)
        return self._cls(value)

    def _relation(self, value: Any) -> Any:
        table = Loaded(_packages.class_named("pyarrow.Table"), "pyarrow.Table")
        return sys.modules["duckdb"].from_arrow(table.read(value))

    def _tensor(self, value: Any) -> Any:
        if isinstance(value, bool | int | float | list):
            return sys.modules["torch"].tensor(value)
        import numpy as np

        if not isinstance(value, np.ndarray):
            raise self.mismatch(value)
        return sys.modules["torch"].from_numpy(value)

    def write(self, value: Any) -> Any:
        if not isinstance(value, self._cls):
            raise invalid(f"{describe(value)}, expected a `{self._name}`")
        return value

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        del schemas
        if self._name == "PIL.Image.Image":
            return {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}
        if self._name in _LISTS:
            return {"type": "array", "items": {}}
        return {"anyOf": [{"type": "object", "additionalProperties": True}, {"type": "array", "items": {}}]}


#: The classes that a list becomes.
_LISTS = frozenset(
    {"torch.Tensor", "pandas.Index", "pandas.Series", "polars.Series", "pyarrow.Array", "pyarrow.ChunkedArray"}
)


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
