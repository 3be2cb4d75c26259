"""Creates the specs of tools from signatures, annotations and docstrings."""

from __future__ import annotations

# Not `collections.abc`: see `_checked`.
import _collections_abc as abc
import sys

from snakepit_bridge import _docstrings, _signatures

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypedDict

    from snakepit_bridge.base_adapter import ToolOptions

    class ParameterSpec(TypedDict):
        """One parameter of a tool. Mirrors `ParameterSpec` of the native runtime."""

        name: str
        type: str
        description: str
        required: bool
        default: Any

    class ToolSpec(TypedDict):
        """The description of a tool. Mirrors `ToolSpec` of the native runtime."""

        name: str
        description: str
        parameters: list[ParameterSpec]
        metadata: dict[str, str]
        supports_streaming: bool
        closed: bool


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

# The same types as in `types`, without importing it.
_GENERIC_ALIAS: Any = type(list[int])
_UNION = type(int | None)


def spec_of(
    function: Callable[..., Any], attribute: str, options: ToolOptions, owner: type, *, bound: bool
) -> ToolSpec:
    """Create the spec of a tool from its function. If ``bound``, its first parameter is the object or class."""
    description, argument_docs = _docstrings.read(_encodable(_docstrings.docstring_of(function, owner)))
    parameters, closed = _parameters(function, argument_docs, bound=bound)
    return {
        "name": _checked_name(options.name or attribute, owner),
        "description": description if options.description is None else _encodable(options.description),
        "parameters": parameters,
        "metadata": metadata_of(owner, idempotent=options.idempotent),
        "supports_streaming": options.supports_streaming or _signatures.is_generator_function(function),
        "closed": closed,
    }


def _checked_name(name: str, owner: type) -> str:
    if name != _encodable(name):
        raise TypeError(
            f"tool {name!a} of `{owner.__qualname__}` has a name that cannot be encoded as UTF-8; rename it"
        )
    return name


def _encodable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, with escapes. Only for texts that no program compares."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def dynamic_spec_of(name: str, owner: type) -> ToolSpec:
    """Create the spec of a tool that only has a name."""
    return {
        "name": name,
        "description": "",
        "parameters": [],
        "metadata": metadata_of(owner, idempotent=False),
        "supports_streaming": True,
        "closed": False,
    }


def metadata_of(owner: type, *, idempotent: bool) -> dict[str, str]:
    """Return the metadata of a tool: its class, its module, and whether it is idempotent."""
    metadata = {"adapter_class": owner.__qualname__, "module": owner.__module__}
    if idempotent:
        metadata["snakepit.idempotent"] = "true"
    return metadata


def type_name(annotation: Any) -> str:
    """Return the wire type of an annotation, or ``any`` if the host cannot check it."""
    try:
        known = _TYPE_NAMES.get(annotation)
    except TypeError:  # Unhashable, so it is not one of the known types.
        return "any"
    if known is not None:
        return known
    if isinstance(annotation, _GENERIC_ALIAS):
        return type_name(annotation.__origin__)
    if isinstance(annotation, type) and (annotation.__module__, annotation.__name__) == ("numpy", "ndarray"):
        return "tensor"
    return _type_name_of_typing(annotation) if "typing" in sys.modules else "any"


def _type_name_of_typing(annotation: Any) -> str:
    """Return the wire type of an annotation from `typing`. Call it only if `typing` is imported already."""
    import typing

    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return type_name(typing.get_args(annotation)[0])
    if origin in (typing.Union, _UNION):
        return "any"
    if origin is typing.Literal:
        names = {type_name(type(value)) for value in typing.get_args(annotation)}
        return names.pop() if len(names) == 1 else "any"
    if origin is not None:
        return type_name(origin)
    return "map" if typing.is_typeddict(annotation) else "any"


def _parameter_type(annotation: Any, default: Any) -> str:
    """Return the wire type of a parameter. ``X | None = None`` is X, because the host accepts null for this default."""
    if annotation is _signatures.EMPTY:
        return "any"
    if default is None and _is_union(annotation):
        members = [member for member in annotation.__args__ if member is not type(None)]
        if len(members) == 1:
            return type_name(members[0])
    return type_name(annotation)


def _is_union(annotation: Any) -> bool:
    typing = sys.modules.get("typing")
    return isinstance(annotation, _UNION) or (typing is not None and typing.get_origin(annotation) is typing.Union)


def _parameters(function: Callable[..., Any], docs: dict[str, str], *, bound: bool) -> tuple[list[ParameterSpec], bool]:
    """Return the parameters, and whether the function takes no other arguments."""
    annotations = _signatures.annotations_of(function)
    parameters: list[ParameterSpec] = []
    closed = True
    name = getattr(function, "__qualname__", None) or _signatures.underlying(function).__qualname__
    declared = _signatures.parameters_of(function)
    if declared and declared[0].kind == _signatures.VAR_POSITIONAL:
        # A wrapper with `*args` also receives the object through them.
        declared = declared[1:]
    elif bound:
        declared = declared[1:]
    for parameter in declared:
        if parameter.kind == _signatures.VAR_KEYWORD:
            closed = False
        elif parameter.kind == _signatures.POSITIONAL_ONLY:
            raise TypeError(
                f"tool `{name}` has the positional-only parameter `{parameter.name}`, but "
                "arguments come by name; remove the `/` from its signature"
            )
        elif parameter.kind == _signatures.VAR_POSITIONAL:
            raise TypeError(
                f"tool `{name}` has the parameter `*{parameter.name}`, but arguments come by name; "
                f"take a list instead: `{parameter.name}: list`"
            )
        else:
            required = parameter.default is _signatures.EMPTY
            annotation = annotations.get(parameter.name, _signatures.EMPTY)
            parameters.append(
                {
                    "name": parameter.name,
                    "type": _parameter_type(annotation, parameter.default),
                    "description": docs.get(parameter.name, ""),
                    "required": required,
                    "default": None if required else parameter.default,
                }
            )
    return parameters, closed
