"""Hints of pydantic types, which pydantic itself converts and describes. Imported only if such a type appears."""

from __future__ import annotations

import sys
import weakref

import pydantic
import pydantic.json_schema
import pydantic_core

from snakepit_bridge._hints.base import MAX_PROBLEMS, Hint, HintError, InvalidError, describe, invalid, show, type_name
from snakepit_bridge._hints.containers import quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from snakepit_bridge._hints.base import Schemas


class _SchemaGenerator(pydantic.json_schema.GenerateJsonSchema):
    """Describes fields of arbitrary types, which pydantic only checks, as any value."""

    def is_instance_schema(self, schema: Any) -> dict[str, Any]:
        return {}


class Pydantic(Hint):
    """A model or another type of pydantic. Follows the rules of pydantic."""

    def __init__(self, annotation: Any, name: str) -> None:
        try:
            self._adapter: Any = pydantic.TypeAdapter(annotation)
            kind = self._adapter.json_schema(schema_generator=_SchemaGenerator).get("type", "")
            self._is_json = _is_json(self._adapter.core_schema)
        except Exception as error:
            text = " ".join(str(error).split())
            raise HintError(f"is `{name}`, for which pydantic has no schema: {text}") from error
        self._name = name
        if isinstance(annotation, type) and (
            issubclass(annotation, pydantic.BaseModel) or hasattr(annotation, "__pydantic_validator__")
        ):
            self.cls = annotation
        self.expected = f"`{name}`"
        self.wire = {"object": "map", "string": "string", "array": "list"}.get(kind, "any")

    def read(self, value: Any) -> Any:
        try:
            return self._adapter.validate_python(value)
        except pydantic.ValidationError as error:
            raise _invalid(error, value) from None

    def write(self, value: Any) -> Any:
        if self.cls is not None and not isinstance(value, self.cls):
            raise invalid(f"{describe(value)}, expected a `{type_name(self.cls)}`")
        try:
            return _form(
                lambda mode: self._adapter.dump_python(value, mode=mode, by_alias=True, warnings="error"),
                is_json=self._is_json,
            )
        except pydantic.ValidationError as error:
            raise _invalid(error, value) from None
        except (ValueError, TypeError) as error:
            raise invalid(f"cannot be converted by pydantic: {' '.join(str(error).split())}") from error

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        if self.cls is not None:
            return schemas.reference(self, self._name, lambda name: self._definition(schemas, name))
        return self._definition(schemas, "")

    def _definition(self, schemas: Schemas, own_name: str) -> dict[str, Any]:
        mode = "serialization" if schemas.is_result else "validation"
        schema = self._adapter.json_schema(mode=mode, ref_template="#/$defs/{model}", schema_generator=_SchemaGenerator)
        inner = schema.pop("$defs", {})
        # The definitions include the class itself if it is recursive.
        itself = schema.get("$ref", "").removeprefix("#/$defs/") if own_name else ""
        # The names that pydantic chose may be in use.
        names = {itself: own_name}
        if itself:
            schema = inner.pop(itself)
        for name in inner:
            names[name] = schemas.free_name(name)
            schemas.definitions[names[name]] = {}
        for name, definition in inner.items():
            schemas.definitions[names[name]] = _renamed(definition, names)
        renamed: dict[str, Any] = _renamed(schema, names)
        return renamed


#: The types of schemas whose values pydantic writes into JSON without a loss, with those of their parts.
_JSON_TYPES = frozenset(
    {
        *("none", "bool", "int", "float", "decimal", "str", "date", "time", "datetime", "timedelta", "uuid"),
        *("literal", "enum", "list", "tuple", "set", "frozenset", "dict", "typed-dict", "typed-dict-field"),
        *("nullable", "union", "tagged-union", "default", "definitions", "definition-ref"),
        *("model", "model-fields", "model-field", "dataclass", "dataclass-args", "dataclass-field", "computed-field"),
    }
)

#: Whether a model has the same form as its JSON.
_json_models: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()


def form_of_model(value: pydantic.BaseModel) -> Any:
    """Return the form of a model: its JSON, but with raw bytes and arrays."""
    cls = type(value)
    is_json = _json_models.get(cls)
    if is_json is None:
        is_json = _json_models[cls] = _is_json(cls.__pydantic_core_schema__)
    return _form(lambda mode: value.model_dump(mode=mode, by_alias=True), is_json=is_json)


def _is_json(schema: Any) -> bool:
    """Return whether the values of a schema contain neither buffers, secrets nor objects of unknown classes."""
    if isinstance(schema, list | tuple):
        return all(map(_is_json, schema))
    if not isinstance(schema, dict):
        return not isinstance(schema, bytes)
    # A part without a type is a map of fields, or a configuration.
    kind = schema.get("type")
    if isinstance(kind, str) and kind not in _JSON_TYPES:
        return False
    # The values of a function, and those of unknown fields, have any type.
    if "serialization" in schema or "allow" in (schema.get("extra_behavior"), schema.get("extra_fields_behavior")):
        return False
    return all(_is_json(part) for name, part in schema.items() if name != "metadata")


def _form(dump: Callable[[str], Any], *, is_json: bool) -> Any:
    """Return the form of pydantic's JSON, but with the bytes and arrays of the objects.

    Args:
        dump: Returns the form of a mode, ``json`` or ``python``.
        is_json: Whether the form is that of the JSON. This saves the second form and the search for buffers.

    Raises:
        TypeError: It contains a ``SecretStr`` or another secret, of which pydantic would write only asterisks.
    """
    if is_json:
        return dump("json")
    raw = dump("python")
    has_buffers = _has_buffers(raw)
    try:
        form = dump("json")
    except (ValueError, TypeError):
        if not has_buffers:
            raise
        # Bytes that are not UTF-8, or an array. The native runtime converts objects that pydantic does not know.
        form = pydantic_core.to_jsonable_python(raw, bytes_mode="base64", fallback=lambda _: None)
    return _merged(form, raw) if has_buffers else form


def _is_buffer(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return isinstance(value, bytes | bytearray | memoryview) or (numpy is not None and isinstance(value, numpy.ndarray))


def _has_buffers(value: Any) -> bool:
    """Return whether a form contains buffers, after a look at all of its parts.

    Raises:
        TypeError: It contains a secret.
    """
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple | set | frozenset):
        if isinstance(value, pydantic.SecretStr | pydantic.SecretBytes | pydantic.Secret):
            name = type(value).__name__
            raise TypeError(
                f"it contains a `{name}`, which pydantic hides; add a serializer that returns get_secret_value()"
            )
        return _is_buffer(value)
    found = False
    for item in value:
        found = _has_buffers(item) or found
    return found


def _merged(form: Any, raw: Any) -> Any:
    if form is None or _is_buffer(raw):
        return raw
    if isinstance(form, dict) and isinstance(raw, dict) and len(form) == len(raw):
        return {key: _merged(item, other) for (key, item), other in zip(form.items(), raw.values(), strict=True)}
    if isinstance(form, list) and isinstance(raw, list | tuple):
        return [_merged(item, other) for item, other in zip(form, raw, strict=True)]
    return form


def _renamed(schema: Any, names: dict[str, str]) -> Any:
    if isinstance(schema, list):
        return [_renamed(item, names) for item in schema]
    if not isinstance(schema, dict):
        return schema
    renamed = {key: _renamed(value, names) for key, value in schema.items()}
    mapping = schema.get("mapping")
    if isinstance(mapping, dict) and isinstance(schema.get("propertyName"), str):
        # A discriminator.
        renamed["mapping"] = {tag: f"#/$defs/{names[name.removeprefix('#/$defs/')]}" for tag, name in mapping.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str):
        renamed["$ref"] = f"#/$defs/{names[reference.removeprefix('#/$defs/')]}"
    return renamed


def _invalid(error: pydantic.ValidationError, value: Any) -> InvalidError:
    problems = []
    for detail in error.errors(include_url=False)[: MAX_PROBLEMS + 1]:
        path, kind = _path(detail, value), detail["type"]
        context = detail.get("ctx", {})
        # The name of a field in quotes, or a function.
        field = str(context.get("discriminator", "")).strip("'")
        if kind == "missing":
            problem = "is missing"
        elif kind == "extra_forbidden":
            problem = "is unknown"
        elif kind == "union_tag_not_found" and field.isidentifier():
            path, problem = f"{path}.{field}", "is missing"
        elif kind == "union_tag_invalid" and field.isidentifier():
            path, problem = f"{path}.{field}", f"is {show(context['tag'])}, expected one of {context['expected_tags']}"
        else:
            message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            problem = f"is invalid: {message}"
        problems.append((path, problem))
    return InvalidError(problems)


def _path(detail: Any, value: Any) -> str:
    """Return the path of an invalid part of a value, without pydantic's tags and names of the members of unions."""
    steps: list[Any] = list(detail["loc"])
    part = detail["input"]
    if steps and steps[-1] == "[key]":
        key = steps[-2]
        found = _kept(value, steps[:-2], lambda inner: isinstance(inner, dict) and key in inner, set())
        return f"{_text_of(_existing(value, steps[:-2]) if found is None else found)} key {show(key)}"
    # The part that lacks a field is that around it.
    last = steps[-1:] if detail["type"] == "missing" else []
    first = steps[: len(steps) - len(last)]
    found = _kept(value, first, lambda inner: inner is part, set())
    if found is None:
        # A validator has replaced the part.
        found = _existing(value, first)
        last = steps[-1:] if found[-1:] != steps[-1:] else []
    return _text_of(found + last)


def _kept(value: Any, steps: list[Any], is_part: Callable[[Any], bool], seen: set[tuple[int, int]]) -> list[Any] | None:
    """Return the steps that lead from a value to a part of it. ``None`` if no selection of the steps does.

    Args:
        value: The value.
        steps: The steps, some of which are tags or names, and neither keys nor indexes.
        is_part: Whether a value is the part.
        seen: The values that were visited, with the number of remaining steps.
    """
    if not steps:
        return [] if is_part(value) else None
    if (len(steps), id(value)) in seen:
        return None
    seen.add((len(steps), id(value)))
    step, *others = steps
    if _has(value, step):
        found = _kept(value[step], others, is_part, seen)
        if found is not None:
            return [step, *found]
    return _kept(value, others, is_part, seen)


def _existing(value: Any, steps: list[Any]) -> list[Any]:
    """Return the steps that exist in a value."""
    found = []
    for step in steps:
        if _has(value, step):
            value = value[step]
            found.append(step)
    return found


def _has(value: Any, step: Any) -> bool:
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and step < len(value)


def _text_of(steps: list[Any]) -> str:
    return "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" if str(step).isidentifier() else f"[{quoted(step)}]"
        for step in steps
    )


def is_foreign(annotation: Any) -> bool:
    """Return whether pydantic defines how to convert a class."""
    attributes = ("__pydantic_validator__", "__get_pydantic_core_schema__")
    return any(hasattr(annotation, attribute) for attribute in attributes)
