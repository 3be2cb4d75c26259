"""Specs of tools, read from signatures, annotations and docstrings."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections import abc
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable

    from snakepit_bridge.base_adapter import ToolOptions

_TYPE_NAMES: dict[Any, str] = {
    bool: "boolean",
    bytearray: "bytes",
    bytes: "bytes",
    dict: "map",
    float: "float",
    int: "integer",
    list: "list",
    memoryview: "bytes",
    str: "string",
    tuple: "list",
    type(None): "null",
    abc.Mapping: "map",
    abc.MutableMapping: "map",
    abc.MutableSequence: "list",
    abc.Sequence: "list",
    None: "null",
}

#: Section headers of Google-style docstrings, which end the description and the arguments.
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns?|Raises|Yields?|Examples?|Notes?|Attributes):\s*$")
_ARGUMENT = re.compile(r"^(\*{0,2}\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")


class ParameterSpec(TypedDict):
    """One parameter of a tool. Mirrors what the native runtime reads."""

    name: str
    type: str
    description: str
    required: bool
    default: Any


class ToolSpec(TypedDict):
    """What a tool says about itself. Mirrors what the native runtime reads."""

    name: str
    description: str
    parameters: list[ParameterSpec]
    metadata: dict[str, str]
    supports_streaming: bool
    closed: bool


def spec_of(
    function: Callable[..., Any], attribute: str, options: ToolOptions, owner: type, *, bound: bool
) -> ToolSpec:
    """Describe a tool by its function. ``bound`` says whether its first parameter is the object or class."""
    documentation = inspect.getdoc(function) or ""
    description, argument_docs = _read_docstring(documentation)
    parameters, closed = _parameters(function, argument_docs, bound=bound)
    return ToolSpec(
        name=options.name or attribute,
        description=description if options.description is None else options.description,
        parameters=parameters,
        metadata=metadata_of(owner, idempotent=options.idempotent),
        supports_streaming=options.supports_streaming or generates(function),
        closed=closed,
    )


def dynamic_spec_of(name: str, owner: type) -> ToolSpec:
    """Describe a tool of which only the name is known."""
    return ToolSpec(
        name=name,
        description="",
        parameters=[],
        metadata=metadata_of(owner, idempotent=False),
        supports_streaming=True,
        closed=False,
    )


def metadata_of(owner: type, *, idempotent: bool) -> dict[str, str]:
    """Say where a tool comes from."""
    metadata = {"adapter_class": owner.__qualname__, "module": owner.__module__}
    if idempotent:
        metadata["snakepit.idempotent"] = "true"
    return metadata


def generates(function: Callable[..., Any]) -> bool:
    """Whether a function is written with ``yield``, so that it always streams."""
    function = inspect.unwrap(function)
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def type_name(annotation: Any) -> str:
    """Name the wire type of an annotation: ``any`` for all that the host cannot check."""
    try:
        known = _TYPE_NAMES.get(annotation)
    except TypeError:  # An unhashable annotation names no type.
        return "any"
    if known is not None:
        return known
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return type_name(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return "any"
    if origin is typing.Literal:
        names = {type_name(type(value)) for value in typing.get_args(annotation)}
        return names.pop() if len(names) == 1 else "any"
    if origin is not None:
        return type_name(origin)
    if isinstance(annotation, type):
        if (annotation.__module__, annotation.__name__) == ("numpy", "ndarray"):
            return "tensor"
        if typing.is_typeddict(annotation):
            return "map"
    return "any"


def _parameter_type(annotation: Any, default: Any) -> str:
    """Name the wire type of a parameter. ``X | None = None`` is an X: the host takes null where that is the default."""
    if annotation is inspect.Parameter.empty:
        return "any"
    if default is None and typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        if len(members) == 1:
            return type_name(members[0])
    return type_name(annotation)


def _parameters(function: Callable[..., Any], docs: dict[str, str], *, bound: bool) -> tuple[list[ParameterSpec], bool]:
    """List the parameters, and say whether these are all the arguments that the function takes."""
    signature = inspect.signature(function)
    hints = _hints(function)
    parameters: list[ParameterSpec] = []
    closed = True
    for parameter in list(signature.parameters.values())[1 if bound else 0 :]:
        if parameter.kind is parameter.VAR_KEYWORD:
            closed = False
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(
                f"tool `{function.__qualname__}` has the positional-only parameter `{parameter.name}`, but "
                "arguments come by name; remove the `/` from its signature"
            )
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            required = parameter.default is parameter.empty
            annotation = hints.get(parameter.name, parameter.empty)
            parameters.append(
                ParameterSpec(
                    name=parameter.name,
                    type=_parameter_type(annotation, parameter.default),
                    description=docs.get(parameter.name, ""),
                    required=required,
                    default=None if required else parameter.default,
                )
            )
    return parameters, closed


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Evaluate the annotations, leaving out those that name what is not there at run time."""
    function = inspect.unwrap(function)
    try:
        return typing.get_type_hints(function)
    except Exception:  # Evaluating an annotation may raise anything; a type that is unknown is not checked.
        namespace = getattr(function, "__globals__", {})
        hints = {}
        for name, annotation in getattr(function, "__annotations__", {}).items():
            try:
                hints[name] = eval(annotation, namespace) if isinstance(annotation, str) else annotation  # noqa: S307
            except Exception:
                hints[name] = Any
        return hints


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a Google-style docstring into what stands before its sections and what its arguments mean."""
    lines = text.splitlines()
    sections = [index for index, line in enumerate(lines) if _SECTION.match(line)]
    description = "\n".join(lines[: sections[0]] if sections else lines).strip()
    docs: dict[str, str] = {}
    ends = [*sections[1:], len(lines)]
    # Without a section there is one end more than there are starts.
    for start, end in zip(sections, ends, strict=False):
        if lines[start].startswith(("Args", "Arguments", "Parameters")):
            docs.update(_read_arguments(lines[start + 1 : end]))
    return description, docs


def _read_arguments(lines: list[str]) -> dict[str, str]:
    docs: dict[str, str] = {}
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    current = None
    for line in lines:
        match = _ARGUMENT.match(line[indent:])
        if match and not line[:indent].strip():
            current = match[1].lstrip("*")
            docs[current] = match[2].strip()
        elif current and line.strip():
            docs[current] = f"{docs[current]} {line.strip()}".strip()
    return docs
