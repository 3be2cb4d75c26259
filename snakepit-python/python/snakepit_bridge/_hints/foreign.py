"""Hints of pydantic types, which pydantic itself converts and describes. Imported only if such a type appears."""

from __future__ import annotations

import sys

import pydantic

from snakepit_bridge._hints.base import MAX_PROBLEMS, Hint, HintError, InvalidError, describe, invalid, type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from snakepit_bridge._hints.base import Schemas


class Pydantic(Hint):
    """A model or another type of pydantic. Follows the rules of pydantic."""

    def __init__(self, annotation: Any, name: str) -> None:
        try:
            self._adapter: Any = pydantic.TypeAdapter(annotation)
            kind = self._adapter.json_schema().get("type", "")
        except Exception as error:
            text = " ".join(str(error).split())
            raise HintError(f"is `{name}`, for which pydantic has no schema: {text}") from error
        self._name = name
        #: The class of results. ``None`` if the annotation is not a class of values.
        self._cls: type | None = None
        if isinstance(annotation, type) and (
            issubclass(annotation, pydantic.BaseModel) or hasattr(annotation, "__pydantic_validator__")
        ):
            self._cls = annotation
        self.expected = f"`{name}`"
        self.wire = {"object": "map", "string": "string", "array": "list"}.get(kind, "any")

    def read(self, value: Any) -> Any:
        try:
            return self._adapter.validate_python(value)
        except pydantic.ValidationError as error:
            raise _invalid(error) from None

    def write(self, value: Any) -> Any:
        if self._cls is not None and not isinstance(value, self._cls):
            raise invalid(f"{describe(value)}, expected a `{type_name(self._cls)}`")
        try:
            return form_with_buffers(
                lambda mode: self._adapter.dump_python(value, mode=mode, by_alias=True, warnings="error")
            )
        except pydantic.ValidationError as error:
            raise _invalid(error) from None
        except (ValueError, TypeError) as error:
            raise invalid(f"cannot be converted by pydantic: {' '.join(str(error).split())}") from error

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        if self._cls is not None:
            return schemas.reference(self, self._name, lambda name: self._definition(schemas, name))
        return self._definition(schemas, "")

    def _definition(self, schemas: Schemas, own_name: str) -> dict[str, Any]:
        mode = "serialization" if schemas.is_result else "validation"
        schema = self._adapter.json_schema(mode=mode, ref_template="#/$defs/{model}")
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


def form_with_buffers(dump: Callable[[str], Any]) -> Any:
    """Return the form of pydantic's JSON, but with the bytes and arrays of the objects.

    ``dump`` returns the form of a mode, ``json`` or ``python``.
    """
    raw = dump("python")
    try:
        form = dump("json")
    except (ValueError, TypeError):
        if not _has_buffers(raw):
            raise
        # The native runtime converts the objects in it.
        return raw
    return _merged(form, raw) if _has_buffers(raw) else form


def check_secrets(value: Any) -> None:
    """Check that the form of a model hides no value.

    Raises:
        TypeError: It contains a ``SecretStr`` or another secret, of which pydantic would write only asterisks.
    """
    if isinstance(value, pydantic.SecretStr | pydantic.SecretBytes | pydantic.Secret):
        name = type(value).__name__
        raise TypeError(
            f"it contains a `{name}`, which pydantic hides; add a serializer that returns get_secret_value()"
        )
    if isinstance(value, dict):
        for item in value.values():
            check_secrets(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            check_secrets(item)


def _is_buffer(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return isinstance(value, bytes | bytearray | memoryview) or (numpy is not None and isinstance(value, numpy.ndarray))


def _has_buffers(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_buffers, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_has_buffers, value))
    return _is_buffer(value)


def _merged(form: Any, raw: Any) -> Any:
    if _is_buffer(raw):
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
    reference = schema.get("$ref")
    if isinstance(reference, str):
        renamed["$ref"] = f"#/$defs/{names[reference.removeprefix('#/$defs/')]}"
    return renamed


def _invalid(error: pydantic.ValidationError) -> InvalidError:
    problems = []
    for detail in error.errors(include_url=False, include_context=False)[: MAX_PROBLEMS + 1]:
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in detail["loc"])
        kind = detail["type"]
        if kind == "missing":
            problem = "is missing"
        elif kind == "extra_forbidden":
            problem = "is unknown"
        else:
            message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            problem = f"is invalid: {message}"
        problems.append((path, problem))
    return InvalidError(problems)


def is_foreign(annotation: Any) -> bool:
    """Return whether pydantic defines how to convert a class."""
    attributes = ("__pydantic_validator__", "__get_pydantic_core_schema__")
    return any(hasattr(annotation, attribute) for attribute in attributes)
