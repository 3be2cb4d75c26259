"""Checks the arguments of a call against a tool's spec, with the rules and messages of `check.rs` in the host."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _native
from snakepit_bridge.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from snakepit_bridge._specs import ParameterSpec, ToolSpec

_TEXT = frozenset({"string", "choice", "module"})
_ARRAY = frozenset({"list", "embedding", "tensor"})

#: The value types that a parameter type accepts. Other parameter types accept any value.
_ACCEPTED_TYPES: dict[str, frozenset[str]] = {
    "boolean": frozenset({"boolean"}),
    "bytes": frozenset({"bytes"}),
    "float": frozenset({"float", "integer"}),
    "integer": frozenset({"integer"}),
    "list": _ARRAY,
    "map": frozenset({"map"}),
    "null": frozenset({"null"}),
    "string": _TEXT,
    "tensor": _ARRAY,
}


#: All integers up to this magnitude have an exact float.
_MAX_EXACT_INTEGER = 2**53


def check(spec: ToolSpec, arguments: Mapping[str, Any]) -> None:
    """Check that all required arguments are present, that each has its type, and that there are no others.

    Raises:
        InvalidArgumentError: The host would reject the call.
    """
    tool = spec["name"]
    for parameter in spec["parameters"]:
        name = parameter["name"]
        if name in arguments:
            type_name = _native.encode(arguments[name], f"argument `{name}` of tool `{tool}`", is_argument=True)[0]
            if not _is_accepted(parameter, type_name, arguments[name]):
                raise _invalid(spec, name, f"is {_article(type_name)} {type_name}, expected {parameter['type']}")
        elif parameter["required"]:
            found = _unknown_argument(spec, arguments)
            unknown = f", and `{found[0]}` is unknown{found[1]}" if found else ""
            raise _invalid(spec, name, f"is missing{unknown}; the tool takes {_signature(spec)}")
    if found := _unknown_argument(spec, arguments):
        name, hint = found
        raise _invalid(spec, name, f"is unknown{hint}; the tool takes {_signature(spec)}")


def _unknown_argument(spec: ToolSpec, arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return an argument that a closed spec does not contain, with a hint that names the most similar parameter."""
    if not spec["closed"]:
        return None
    names = [parameter["name"] for parameter in spec["parameters"]]
    name = next((name for name in arguments if name not in names), None)
    return None if name is None else (name, did_you_mean(name, names, " ({})"))


def did_you_mean(name: str, names: Iterable[str], form: str) -> str:
    """Return a suggestion of the most similar name. Empty if no name is similar."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return form.format(f"did you mean `{near[0]}`?") if near else ""


def _is_accepted(parameter: ParameterSpec, type_name: str, value: Any) -> bool:
    if type_name == "float" and parameter["type"] == "integer":
        # Integer variables accept 5.0 as 5, too.
        return float(value).is_integer() and abs(value) <= _MAX_EXACT_INTEGER
    if type_name == "null" and not parameter["required"] and parameter.get("default", ...) is None:
        return True
    accepted = _ACCEPTED_TYPES.get(parameter["type"])
    return accepted is None or type_name in accepted


def _signature(spec: ToolSpec) -> str:
    described = [f"{p['name']} ({p['type']}{'' if p['required'] else ', optional'})" for p in spec["parameters"]]
    return ", ".join(described) or "no arguments"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _invalid(spec: ToolSpec, argument: str, problem: str) -> InvalidArgumentError:
    error = InvalidArgumentError(f"argument `{argument}` of tool `{spec['name']}` {problem}")
    error.violations = [(argument, problem)]
    return error
