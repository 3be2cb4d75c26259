"""Tools that receive, return, stream and store values of every type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from snakepit_bridge import BaseAdapter, SessionContext, tool
from value_samples import SAMPLES, problem, same, sent, unwrapped, wrapped


class WholeValues(BaseAdapter):
    @tool
    def echo(self, value: Any) -> Any:
        return value

    @tool
    def repeat(self, value: Any) -> Iterator[Any]:
        yield value
        yield [value]

    @tool
    def check_argument(self, name: str, depth: int, value: Any) -> str | None:
        """Returns the problem of an argument that arrived."""
        return problem(name, unwrapped(value, depth))

    @tool
    def make(self, name: str, depth: int) -> Any:
        return wrapped(sent(name), depth)

    @tool
    def ones(self, count: int) -> list[Any]:
        """Returns bytes of an odd length, and an array."""
        return [b"abc", np.ones(count)]

    @tool
    def make_all(self, depth: int) -> Iterator[Any]:
        for name in SAMPLES:
            yield wrapped(sent(name), depth)

    @tool
    def check_places(self) -> list[str]:
        """Returns the problems of all places that only a worker uses."""
        context = self.session_context
        return [
            f"{place.__name__} at depth {depth}: {found}"
            for place in (_variable, _program, _global_program, _host_tool, _streaming_host_tool, _other_tool)
            for depth in (0, 2)
            for name in SAMPLES
            if (found := _problem(context, place, name, depth)) is not None
        ]


def _problem(
    context: SessionContext, place: Callable[[SessionContext, str, Any], Any], name: str, depth: int
) -> str | None:
    if place is _variable and depth == 0 and name in ("null", "int"):
        # Variables are never null, and integer variables have 64 bits.
        return None
    try:
        return problem(name, unwrapped(place(context, name, wrapped(sent(name), depth)), depth))
    except Exception as error:
        return f"{name}: {error!r}"


def _variable(context: SessionContext, name: str, value: Any) -> Any:
    # A variable keeps its type, so each value has a new one.
    context.register_variable(name, None, value)
    found = context[name]
    (version,) = context.variable_history(name)
    del context[name]
    return found if same(found, version.value) else version.value


def _program(context: SessionContext, name: str, value: Any) -> Any:
    context.programs[name] = value
    return context.programs[name]


def _global_program(context: SessionContext, name: str, value: Any) -> Any:
    context.global_programs[name] = value
    return context.global_programs[name]


def _host_tool(context: SessionContext, name: str, value: Any) -> Any:
    del name
    return context.call_host_tool("mirror", value=value)


def _streaming_host_tool(context: SessionContext, name: str, value: Any) -> Any:
    del name
    (found,) = context.stream_host_tool("mirror_stream", value=value)
    return found


def _other_tool(context: SessionContext, name: str, value: Any) -> Any:
    del name
    return context.call_tool("echo", value=value)
