"""Descriptions of tools for adapters, with the attributes that registrations of the original Snakepit have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _plan
from snakepit_bridge._event_loop import EventLoop

if TYPE_CHECKING:
    from snakepit_bridge._specs import ParameterSpec, ToolSpec


class ParameterRegistration:
    """One parameter of a tool."""

    def __init__(self, spec: ParameterSpec) -> None:
        #: The name.
        self.name = spec["name"]
        #: The name of the type, such as ``float``.
        self.type = spec["type"]
        #: The description in the docstring.
        self.description = spec["description"]
        #: Whether a call must have this argument.
        self.required = spec["required"]
        #: The JSON Schema and the default as JSON. Empty without both.
        self.validation_json = _validation(spec)

    def __repr__(self) -> str:
        """Return a representation with the name and the type."""
        return f"ParameterRegistration(name={self.name!r}, type={self.type!r}, required={self.required!r})"


class ToolRegistration:
    """One tool of an adapter."""

    def __init__(self, spec: ToolSpec) -> None:
        #: The name.
        self.name = spec["name"]
        #: The description for people and language models.
        self.description = spec["description"]
        #: The parameters, in the order of the signature.
        self.parameters = [ParameterRegistration(parameter) for parameter in spec["parameters"]]
        #: Whether the tool can be called as a stream.
        self.supports_streaming = spec["supports_streaming"]
        #: Key-value pairs.
        self.metadata = dict(spec["metadata"])

    def __repr__(self) -> str:
        """Return a representation with the name."""
        return f"ToolRegistration(name={self.name!r})"


def registrations_of(adapter: type) -> list[ToolRegistration]:
    """Describe the tools of an adapter class.

    Raises:
        AdapterError: A worker could not start with this class.
    """
    plan = _plan.plan_of(adapter, EventLoop())
    return [ToolRegistration(spec) for spec in (*(tool.spec for tool in plan.tools), *plan.dynamic_specs)]


def _validation(spec: ParameterSpec) -> str:
    validation: dict[str, Any] = dict(spec.get("schema") or {})
    if not spec["required"] and "default" in spec:
        validation["default"] = spec["default"]
    return json.dumps(validation, default=repr) if validation else ""
