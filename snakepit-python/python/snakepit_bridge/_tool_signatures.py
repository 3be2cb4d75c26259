"""The signatures of tools as text."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from snakepit_bridge._schema_types import ANY, SchemaTypes

if TYPE_CHECKING:
    from snakepit_bridge._listings import ToolInfo


def with_signatures(tools: dict[str, dict[str, Any]]) -> dict[str, ToolInfo]:
    """Add the signature to the description of each tool."""
    return {
        name: cast("ToolInfo", {"name": name, "signature": signature(tool), **tool}) for name, tool in tools.items()
    }


def signature(tool: Mapping[str, Any]) -> str:
    """Return the signature of a tool, such as ``add(*, a: int, b: float = 1.0) -> float``."""
    parameters = []
    schema = tool["input_schema"]
    types = SchemaTypes(schema, is_argument=False, define=_name_of)
    properties, required = schema.get("properties", {}), schema.get("required", ())
    for name in parameter_names(tool):
        part = f"{name}: {types.annotation(properties.get(name), name)}"
        if name not in required:
            default = properties.get(name, {}).get("default", ...)
            part += f" = {'...' if default is ... else repr(default)}"
        parameters.append(part)
    if (additional := schema.get("additionalProperties")) is not False:
        parameters.append(f"**others: {types.annotation(additional, 'value')}")
    if any(not part.startswith("**") for part in parameters):
        parameters.insert(0, "*")
    return f"{tool['name']}({', '.join(parameters)}) -> {result_type(tool, _name_of)}"


def parameter_names(tool: Mapping[str, Any]) -> list[str]:
    """Return the names of the parameters, in the order of the tool."""
    names: dict[str, None] = {parameter["name"]: None for parameter in tool["parameters"]}
    names.update(dict.fromkeys(tool["input_schema"].get("properties", {})))
    return list(names)


def result_type(tool: Mapping[str, Any], define: Any, name: str = "result") -> str:
    """Return the type of the result, or of the iterator over the results."""
    streams = tool["supports_streaming"]
    schema = tool["item_schema"] if streams else tool["result_schema"]
    types = SchemaTypes(schema or {}, is_argument=False, define=define)
    annotation = ANY if schema is None else types.annotation(schema, name)
    return f"Iterator[{annotation}]" if streams else annotation


def identifier(name: str, default: str = "value") -> str:
    """Return a name that is a valid identifier, such as ``my_tool`` for ``my-tool``."""
    made = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") if not name.isidentifier() else name
    if not made or not (made[0].isalpha() or made[0] == "_"):
        made = f"{default}_{made}" if made else default
    return f"{made}_" if keyword.iskeyword(made) else made


def class_name(name: str) -> str:
    """Return a name for a class, such as ``OrderItem`` for ``order item``."""
    parts = re.split(r"\W+|_", name, flags=re.ASCII)
    return identifier("".join(part[:1].upper() + part[1:] for part in parts if part), "Value")


def _name_of(name: str, schema: Mapping[str, Any], types: SchemaTypes) -> str:
    """Return the name of a class without defining it."""
    del schema, types
    return class_name(name)
