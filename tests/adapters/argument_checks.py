"""Scenarios of `state_checks` that pass invalid arguments to every method of a context."""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from raising import error_message
from snakepit_bridge import InvalidArgumentError, InvalidTypeError, SessionContext
from snakepit_bridge.batch import Batch
from snakepit_bridge.programs import GlobalPrograms, Programs
from snakepit_bridge.variables import SessionVariables

#: Invalid arguments, their exceptions, and the error messages after the argument's name.
Invalid = list[tuple[Any, type[Exception], str]]

LARGEST = 2**31 - 1
RANGE = f"expected an int from 0 to {LARGEST}"


class Unreadable:
    """Raises when an attribute is read."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class Unconvertible:
    """Raises when it is converted to an integer."""

    def __index__(self) -> int:
        raise RuntimeError("on purpose")


TEXT: Invalid = [
    (5, InvalidTypeError, "` is an `int`, expected a str"),
    (None, InvalidTypeError, "` is None, expected a str"),
    (b"n", InvalidTypeError, "` is a `bytes`, expected a str"),
    ("\ud800", InvalidArgumentError, "` is '\\ud800', which cannot be encoded as UTF-8"),
]
NAME: Invalid = [
    *TEXT,
    (["n"], InvalidTypeError, "` is a `list`, expected a str"),
    ("", InvalidArgumentError, "` is empty, expected a name"),
]
EACH_NAME: Invalid = [
    (["n", 5], InvalidTypeError, "[1]` is an `int`, expected a str"),
    ([["n"]], InvalidTypeError, "[0]` is a `list`, expected a str"),
    (["n", ""], InvalidArgumentError, "[1]` is empty, expected a name"),
]
NAMES: Invalid = [
    ("n", InvalidTypeError, "` is a `str`, expected a list of str"),
    (b"n", InvalidTypeError, "` is a `bytes`, expected a list of str"),
    (None, InvalidTypeError, "` is None, expected a list of str"),
    (5, InvalidTypeError, "` is an `int`, expected a list of str"),
    *EACH_NAME,
]
FLAG: Invalid = [
    ("no", InvalidTypeError, "` is a `str`, expected a bool"),
    (1, InvalidTypeError, "` is an `int`, expected a bool"),
    (None, InvalidTypeError, "` is None, expected a bool"),
]
INTEGER: Invalid = [
    ("1", InvalidTypeError, "` is a `str`, expected an int"),
    (True, InvalidTypeError, "` is a `bool`, expected an int"),
    (1.0, InvalidTypeError, "` is a `float`, expected an int"),
    (None, InvalidTypeError, "` is None, expected an int"),
    (-1, InvalidArgumentError, f"` is -1, {RANGE}"),
    (2**40, InvalidArgumentError, f"` is {2**40}, {RANGE}"),
]
VERSION: Invalid = [
    ("1", InvalidTypeError, "` is a `str`, expected an int or None"),
    (True, InvalidTypeError, "` is a `bool`, expected an int or None"),
    (1.0, InvalidTypeError, "` is a `float`, expected an int or None"),
    (np.array(5.0), InvalidTypeError, "` is a `numpy.ndarray`, expected an int or None"),
    (Unreadable(), InvalidTypeError, "` is an `argument_checks.Unreadable`, expected an int or None"),
    (Unconvertible(), InvalidTypeError, "` is an `argument_checks.Unconvertible`, expected an int or None"),
    (-1, InvalidArgumentError, f"` is -1, {RANGE}"),
    (2**40, InvalidArgumentError, f"` is {2**40}, {RANGE}"),
]
VERSIONS: Invalid = [
    (3, InvalidTypeError, "` is an `int`, expected a mapping or None"),
    ({5: 1}, InvalidTypeError, " key 5` is an `int`, expected a str"),
    ({"n": None}, InvalidTypeError, "['n']` is None, expected an int"),
    ({"n": True}, InvalidTypeError, "['n']` is a `bool`, expected an int"),
    ({"n": -1}, InvalidArgumentError, f"['n']` is -1, {RANGE}"),
]
TTL: Invalid = [
    *VERSION[:6],
    (0, InvalidArgumentError, f"` is 0, expected an int from 1 to {LARGEST}"),
    (-5, InvalidArgumentError, f"` is -5, expected an int from 1 to {LARGEST}"),
    (2**70, InvalidArgumentError, f"` is {2**70}, expected an int from 1 to {LARGEST}"),
]
METADATA: Invalid = [
    ("why", InvalidTypeError, "` is a `str`, expected a mapping of str to str, or None"),
    ([("a", "b")], InvalidTypeError, "` is a `list`, expected a mapping of str to str, or None"),
    ({5: "x"}, InvalidTypeError, " key 5` is an `int`, expected a str"),
    ({"a": 5}, InvalidTypeError, "['a']` is an `int`, expected a str"),
    ({"a": None}, InvalidTypeError, "['a']` is None, expected a str"),
    ({"a": "\ud800"}, InvalidArgumentError, "['a']` is '\\ud800', which cannot be encoded as UTF-8"),
]
UPDATES: Invalid = [
    (None, InvalidTypeError, "` is None, expected a mapping"),
    (["n"], InvalidTypeError, "` is a `list`, expected a mapping"),
    ({5: 1}, InvalidTypeError, " key 5` is an `int`, expected a str"),
    ({"": 1}, InvalidArgumentError, " key ''` is empty, expected a name"),
]
CONSTRAINTS: Invalid = [
    ([("min", 0)], InvalidTypeError, "` is a `list`, expected a mapping or None"),
    ({5: 1}, InvalidTypeError, " key 5` is an `int`, expected a str"),
]
TYPE: Invalid = [
    (5, InvalidTypeError, "` is an `int`, expected a str or None"),
    (float, InvalidTypeError, "` is a `type`, expected a str or None"),
]
FUNCTION: Invalid = [
    (5, InvalidTypeError, "` is an `int`, expected a function"),
    (None, InvalidTypeError, "` is None, expected a function"),
]

AMOUNT: Invalid = [
    ("1", InvalidTypeError, "` is a `str`, expected a number"),
    (True, InvalidTypeError, "` is a `bool`, expected a number"),
    (-1, InvalidArgumentError, "` is -1.0, expected a finite number of at least 0"),
    (float("inf"), InvalidArgumentError, "` is inf, expected a finite number of at least 0"),
    (float("nan"), InvalidArgumentError, "` is nan, expected a finite number of at least 0"),
]

LOADS: Invalid = [
    (5, InvalidTypeError, "` is an `int`, expected a function or None"),
]

#: By parameter name: invalid arguments, and a valid one.
PARAMETERS: dict[str, tuple[Invalid, Any]] = {
    "atomic": (FLAG, True),
    "change": (FUNCTION, lambda value: value),
    "constraints": (CONSTRAINTS, None),
    "done": (AMOUNT, 1),
    "expected_version": (VERSION, None),
    "expected_versions": (VERSIONS, None),
    "force": (FLAG, False),
    "identifier": (NAME, "n"),
    "identifiers": (NAMES, ["n"]),
    "initial": (FLAG, False),
    "limit": (INTEGER, 0),
    "loads": (LOADS, None),
    "message": (TEXT, ""),
    "metadata": (METADATA, None),
    "name": (NAME, "new"),
    "pattern": (TEXT, ""),
    "retries": (VERSION, 0),
    "total": (AMOUNT, None),
    "ttl": (TTL, None),
    "type": (TYPE, None),
    "updates": (UPDATES, {"n": 1}),
    "version": (INTEGER, 0),
    # These parameters accept every value with a wire form.
    "default": ([], None),
    "initial_value": ([], 1),
    "value": ([], 1),
}
#: Methods that have no arguments or accept anything.
UNCHECKED = {"__init__", "__enter__", "__exit__", "__repr__", "__contains__", "__iter__", "__len__"}


def methods(target: object, kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yields the public methods of a class, bound to an object."""
    for name, member in vars(kind).items():
        is_public = not name.startswith("_") or name.startswith("__")
        if inspect.isfunction(member) and is_public and name not in UNCHECKED:
            yield name, getattr(target, name)


def call(method: Callable[..., Any], parameter: str, value: Any) -> None:
    """Calls a method with a value for one parameter and valid values for all others."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for name, declared in inspect.signature(method).parameters.items():
        argument: Any = value if name == parameter else PARAMETERS.get(name, ([], None))[1]
        if declared.kind == declared.POSITIONAL_ONLY:
            positional.append(argument)
        elif declared.kind == declared.VAR_POSITIONAL:
            positional.extend(argument)
        elif declared.kind != declared.VAR_KEYWORD:
            named[name] = argument
    result = method(*positional, **named)
    if inspect.iscoroutine(result):
        result.send(None)


def check_arguments(context: SessionContext) -> None:
    """Arguments of the wrong type or out of range raise an error that names them, and change nothing."""
    context["n"] = 0
    checked = 0
    for target, kind in [
        (context, SessionVariables),
        (context, SessionContext),
        (context.batch_updates(), Batch),
        (context.programs, Programs),
        (context.global_programs, GlobalPrograms),
    ]:
        for method_name, method in methods(target, kind):
            for name, declared in inspect.signature(method).parameters.items():
                if declared.kind == declared.VAR_KEYWORD:
                    continue
                parameter = "name" if name == "tool_name" else name
                invalid = EACH_NAME if declared.kind == declared.VAR_POSITIONAL else PARAMETERS[parameter][0]
                for value, error, expected in invalid:
                    message = error_message(error, partial(call, method, name, value))
                    assert message == f"`{parameter}{expected}", f"{method_name}({name}={value!r}): {message}"
                    checked += 1
    assert checked > 200, checked
    assert context.variable("n").version == 0
    assert [variable.name for variable in context.list_variables()] == ["n"]
    assert len(context.programs) == 0


def check_other_arguments(context: SessionContext) -> None:
    """numpy integers are accepted, and values without a wire form raise an error that names them."""
    context["n"] = 0
    assert context.set_variable("n", 1, expected_version=np.int64(0)) == 1  # type: ignore[arg-type]
    assert len(context.variable_history("n", np.int64(1))) == 1  # type: ignore[arg-type]
    assert context.get_variables({"n": None}) == {"n": 1}
    assert "program 'p' is a `complex`" in error_message(InvalidTypeError, lambda: context.programs.put("p", 1j))
    assert "program 'p'['a']" in error_message(InvalidTypeError, lambda: context.programs.put("p", {"a": 1j}))
    assert "argument `a` of host tool" in error_message(InvalidTypeError, lambda: context.call_host_tool("tool", a=1j))
    assert "variable `n` is a `complex`" in error_message(InvalidTypeError, lambda: context.set_variables({"n": 1j}))
    assert "constraints of variable `x`['enum']" in error_message(
        InvalidTypeError, lambda: context.register_variable("x", "string", "a", {"enum": 1j})
    )
    assert 5 not in context
    assert "" not in context
    assert 5 not in context.programs  # type: ignore[comparison-overlap]
