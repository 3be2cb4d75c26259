"""Hints of classes with fields: dataclasses, attrs, msgspec structs, TypedDicts and named tuples."""

from __future__ import annotations

import sys

from snakepit_bridge._hints.base import (
    ANY,
    Hint,
    HintError,
    InvalidError,
    collect,
    convert,
    describe,
    invalid,
    show,
    type_name,
)
from snakepit_bridge._hints.containers import as_list, convert_each, count
from snakepit_bridge._hints.generics import substituted, values_by_class, values_of_field
from snakepit_bridge._hints.scalars import Choice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from snakepit_bridge._hints.base import Schemas
    from snakepit_bridge._hints.compiler import Compiler
    from snakepit_bridge._hints.generics import Values

#: The default of a field without one, or whose default is made for each object.
_NONE: Any = object()

_MISSING = "is missing"
_INIT_ONLY = "objects do not keep an `InitVar`: give it a default, or send a map with it"


class Field:
    """A field of a class."""

    __slots__ = ("attribute", "default", "hint", "is_argument", "key", "name", "required")

    def __init__(
        self,
        name: str,
        hint: Hint,
        *,
        required: bool,
        default: Any = _NONE,
        attribute: str | None = None,
        key: str | None = None,
        is_argument: bool = True,
    ) -> None:
        #: The name in JSON.
        self.name = name
        self.hint = hint
        self.required = required
        self.default = default
        #: The name of the attribute. ``None`` if objects do not keep the value.
        self.attribute = name if attribute is None else attribute or None
        #: The name of the constructor's parameter.
        self.key = name if key is None else key
        #: Whether the constructor takes the field.
        self.is_argument = is_argument


class Fields(Hint):
    """A class whose JSON form is a map of its fields. Rejects other names."""

    wire = expected = "map"
    has_fields = True

    def __init__(self, cls: type, tag: tuple[str, Choice] | None = None) -> None:
        self.cls = self._cls = cls
        #: The name and value of an entry that identifies the class.
        self._tag = tag
        self._fields: list[Field] = []
        #: The fields that the constructor takes.
        self._arguments: dict[str, Field] = {}
        #: The fields that the class computes. The form of an object has them; a receiver ignores them.
        self._computed: set[str] = set()
        self.expected = f"map of `{cls.__qualname__}`"

    def class_tag(self) -> tuple[str, Choice] | None:
        return self._tag

    def choice_fields(self) -> dict[str, tuple[Choice, bool]]:
        hints = {name: (field.hint.unwrapped(), field.required) for name, field in self._arguments.items()}
        return {
            name: (hint, required)
            for name, (hint, required) in hints.items()
            if isinstance(hint, Choice) and hint.has_all_forms
        }

    def set_fields(self, fields: list[Field]) -> None:
        """Set the fields. Separate from the constructor, because fields may refer to the class."""
        self._fields = fields
        self._arguments = {field.name: field for field in self._fields if field.is_argument}
        self._computed = {field.name for field in self._fields if not field.is_argument}

    def read(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise self.mismatch(value)
        entries = self._entries(value, lambda hint, entry: hint.read(entry))
        return self._make({self._arguments[name].key: entry for name, entry in entries.items()})

    def _entries(self, value: dict[Any, Any], convert_entry: Callable[[Hint, Any], Any]) -> dict[str, Any]:
        """Convert the entries of a map, and report the problems of all of them.

        Raises:
            InvalidError: An entry is invalid, missing or unknown.
        """
        converted: dict[str, Any] = {}
        problems: list[tuple[str, str]] = []
        for name, field in self._arguments.items():
            try:
                if name in value:
                    converted[name] = convert_entry(field.hint, value[name])
                elif field.required:
                    raise invalid(_MISSING if field.attribute is not None else f"{_MISSING}; {_INIT_ONLY}")
            except InvalidError as error:
                collect(problems, f".{name}", error)
        if len(value) > len(converted):
            self._check_others(value, problems)
        if problems:
            raise InvalidError(problems)
        return converted

    def _check_others(self, value: dict[Any, Any], problems: list[tuple[str, str]]) -> None:
        for name in value:
            if self._tag is not None and name == self._tag[0]:
                if not self._tag[1].accepts(value[name]):
                    problem = f"is {show(value[name])}, expected {self._tag[1].expected}"
                    collect(problems, f".{name}", invalid(problem))
            elif name not in self._arguments and name not in self._computed:
                collect(problems, f".{name}" if str(name).isidentifier() else f"[{show(name)}]", self._unknown(name))

    def _unknown(self, name: object) -> InvalidError:
        from difflib import get_close_matches

        near = get_close_matches(str(name)[:128], self._arguments, n=1)
        return invalid(f"is unknown (did you mean `{near[0]}`?)" if near else "is unknown")

    def _make(self, values: dict[str, Any]) -> Any:
        return convert(self._cls, **values)

    def write(self, value: Any) -> Any:
        if not isinstance(value, self._cls):
            raise invalid(f"{describe(value)}, expected a `{type_name(self._cls)}`")
        written: dict[str, Any] = {} if self._tag is None else {self._tag[0]: self._tag[1].forms()[0]}
        problems: list[tuple[str, str]] = []
        for field in self._fields:
            if field.attribute is None:
                continue
            try:
                written[field.name] = field.hint.write(getattr(value, field.attribute))
            except InvalidError as error:
                collect(problems, f".{field.name}", error)
            except AttributeError:
                collect(problems, f".{field.name}", invalid("is missing"))
        if problems:
            raise InvalidError(problems)
        return written

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return schemas.reference(self, self._cls.__name__, lambda _: self._definition(schemas))

    def _definition(self, schemas: Schemas) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        if self._tag is not None:
            properties[self._tag[0]] = {"const": self._tag[1].forms()[0]}
        required = list(properties)
        for field in self._fields:
            if field.attribute is None if schemas.is_result else not field.is_argument:
                continue
            properties[field.name] = described_default(field.hint, field.default, schemas)
            if field.required or (schemas.is_result and self._writes_all()):
                required.append(field.name)
        schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
        if required:
            schema["required"] = required
        doc = _documentation(self._cls)
        return {**schema, "description": doc} if doc else schema

    def _writes_all(self) -> bool:
        return True


def described_default(hint: Hint, default: Any, schemas: Schemas) -> dict[str, Any]:
    """Return the schema of a hint, with the default if it has a JSON form."""
    schema = hint.schema(schemas)
    if default is _NONE:
        return schema
    try:
        return {**schema, "default": hint.write(default)}
    except Exception:
        # `None` may be the default of a field whose hint does not include it.
        return {**schema, "default": None} if default is None else schema


def _documentation(cls: type) -> str:
    """Return the docstring of a class, unless it was generated."""
    doc = cls.__dict__.get("__doc__")
    if not isinstance(doc, str) or doc.startswith((f"{cls.__name__}(", "Method generated by attrs")):
        return ""
    from snakepit_bridge._docstrings import clean

    return clean(doc)


class Keys(Fields):
    """A ``TypedDict``."""

    def _make(self, values: dict[str, Any]) -> Any:
        return values

    def write(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise self.mismatch(value)
        return self._entries(value, lambda hint, entry: hint.write(entry))

    def _writes_all(self) -> bool:
        return False


class Named(Hint):
    """A ``NamedTuple``, whose JSON form is a list."""

    wire = expected = "list"

    def __init__(self, cls: Any) -> None:
        self.cls = self._cls = cls
        self._fields: list[Field] = []

    def set_fields(self, fields: list[Field]) -> None:
        """Set the fields. Separate from the constructor, because fields may refer to the class."""
        self._fields = fields

    def read(self, value: Any) -> Any:
        values = as_list(self, value)
        least = sum(field.required for field in self._fields)
        if not least <= len(values) <= len(self._fields):
            wanted = f"{least} to {len(self._fields)}" if least < len(self._fields) else str(least)
            raise invalid(f"has {count(len(values), 'item')}, expected {wanted}")
        converters = [field.hint.read for field in self._fields]
        return convert(self._cls, *convert_each(zip(converters, values, strict=False)))

    def write(self, value: Any) -> Any:
        if not isinstance(value, self._cls):
            raise invalid(f"{describe(value)}, expected a `{type_name(self._cls)}`")
        return convert_each(zip([field.hint.write for field in self._fields], value, strict=False))

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return schemas.reference(self, self._cls.__name__, lambda _: self._definition(schemas))

    def _definition(self, schemas: Schemas) -> dict[str, Any]:
        required = len(self._fields) if schemas.is_result else sum(field.required for field in self._fields)
        schema: dict[str, Any] = {"type": "array", "minItems": required, "maxItems": len(self._fields)}
        items = [described_default(field.hint, field.default, schemas) for field in self._fields]
        doc = _documentation(self._cls)
        return {**schema, "prefixItems": items, **({"description": doc} if doc else {})}


def with_fields(cls: Any) -> Fields | Named | None:
    """Return the hint of a class with fields, which the compiler fills later. ``None`` for another class."""
    if hasattr(cls, "__dataclass_fields__") or hasattr(cls, "__attrs_attrs__"):
        return Fields(cls)
    if issubclass(cls, dict) and hasattr(cls, "__required_keys__"):
        return Keys(cls)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return Named(cls)
    if hasattr(cls, "__struct_config__"):
        config = cls.__struct_config__
        if config.array_like:
            raise HintError(f"is the struct `{cls.__qualname__}`, which is array-like; remove `array_like`")
        tag = config.tag
        return Fields(cls, None if config.tag_field is None else (config.tag_field, Choice([(tag, tag)])))
    return None


def fields_of(compiler: Compiler, cls: Any, values: dict[type, Values]) -> list[Field]:
    """Return the fields of a class.

    Args:
        compiler: Compiles their hints.
        cls: The class.
        values: The values of the type variables of the class and of its bases.

    Raises:
        HintError: The hints of some fields are not supported. The message names these fields, up to a limit.
    """
    hints = compiler.annotations_of(cls)
    problems: list[str] = []

    def compiled(name: str, annotation: Any = _NONE) -> Hint:
        annotation = hints.get(name, _NONE) if annotation is _NONE else annotation
        if annotation is _NONE:
            return ANY
        try:
            return compiler.within(annotation, values_of_field(cls, name, values))
        except HintError as error:
            problems.append(f"contains `{cls.__qualname__}.{name}`, which {error}")
            return ANY

    fields = list(_fields_of(cls, hints, compiled))
    if problems:
        raise HintError(", and ".join(problems[:_MAX_FIELDS]))
    return fields


#: The maximum number of fields that the error of a class names.
_MAX_FIELDS = 8


def _fields_of(cls: Any, hints: dict[str, Any], compiled: Callable[..., Hint]) -> Iterator[Field]:
    if hasattr(cls, "__dataclass_fields__"):
        yield from _dataclass_fields(cls, hints, compiled)
    elif hasattr(cls, "__attrs_attrs__"):
        yield from _attrs_fields(cls, compiled)
    elif hasattr(cls, "__struct_config__"):
        yield from _struct_fields(cls, compiled)
    elif issubclass(cls, dict):
        for name, hint in hints.items():
            yield Field(name, compiled(name), required=_is_required(cls, name, hint))
    else:
        for name in cls._fields:
            has_default = name in cls._field_defaults
            default = cls._field_defaults.get(name, _NONE)
            yield Field(name, compiled(name), required=not has_default, default=default)


def keys_of(compiler: Compiler, annotation: Any) -> list[tuple[str, Any, bool]] | None:
    """Return the keys of a ``TypedDict``, the hint of each, and whether it is required. ``None`` for another hint.

    Raises:
        HintError: The hints of the class cannot be evaluated.
    """
    cls = getattr(annotation, "__origin__", annotation)
    if not isinstance(cls, type) or not issubclass(cls, dict) or not hasattr(cls, "__required_keys__"):
        return None
    values = values_by_class(cls, getattr(annotation, "__args__", ()))
    keys = []
    for name, hint in compiler.annotations_of(cls).items():
        required = _is_required(cls, name, hint)
        while getattr(getattr(hint, "__origin__", None), "_name", None) in _QUALIFIERS:
            hint = hint.__args__[0]
        keys.append((name, substituted(hint, values_of_field(cls, name, values)), required))
    return keys


def _is_required(cls: Any, name: str, hint: Any) -> bool:
    """Return whether a key of a ``TypedDict`` is required."""
    required = name in cls.__required_keys__
    # If annotations are strings, the class itself does not know it.
    while (origin := getattr(hint, "__origin__", None)) is not None:
        wrapper = getattr(origin, "_name", None)
        if wrapper not in _QUALIFIERS and not hasattr(hint, "__metadata__"):
            break
        required = wrapper == "Required" if wrapper in ("Required", "NotRequired") else required
        hint = origin if hasattr(hint, "__metadata__") else hint.__args__[0]
    return required


#: The wrappers of hints in a `TypedDict`.
_QUALIFIERS = frozenset({"Required", "NotRequired", "ReadOnly"})


def _dataclass_fields(cls: Any, hints: dict[str, Any], compiled: Callable[..., Hint]) -> Iterator[Field]:
    import dataclasses

    for name, field in cls.__dataclass_fields__.items():
        kind = field._field_type.name
        if kind == "_FIELD_CLASSVAR":
            continue
        is_init_only = kind == "_FIELD_INITVAR"
        hint = hints.get(name)
        hint = compiled(name, hint.type) if isinstance(hint, dataclasses.InitVar) else compiled(name)
        has_default = field.default is not dataclasses.MISSING
        yield Field(
            name,
            hint,
            required=not has_default and field.default_factory is dataclasses.MISSING,
            default=field.default if has_default else _NONE,
            attribute="" if is_init_only else None,
            is_argument=field.init,
        )


def _attrs_fields(cls: Any, compiled: Callable[..., Hint]) -> Iterator[Field]:
    attr = sys.modules["attr"]
    annotations = getattr(cls.__init__, "__annotations__", {})
    for field in cls.__attrs_attrs__:
        has_default = field.default is not attr.NOTHING
        name = field.alias
        # A converter accepts what its own parameter accepts, which attrs copies to the constructor.
        hint = compiled(field.name) if field.converter is None else compiled(field.name, annotations.get(name, object))
        yield Field(
            name,
            hint,
            required=not has_default,
            default=_NONE if not has_default or isinstance(field.default, attr.Factory) else field.default,
            attribute=field.name,
            is_argument=field.init,
        )


def _struct_fields(cls: Any, compiled: Callable[..., Hint]) -> Iterator[Field]:
    from msgspec import NODEFAULT, structs

    for field in structs.fields(cls):
        default = _NONE if field.default is NODEFAULT else field.default
        yield Field(
            field.encode_name,
            compiled(field.name),
            required=field.required,
            default=default,
            attribute=field.name,
            key=field.name,
        )
