"""Exceptions for failures of host tools: their classes and attributes."""

from __future__ import annotations

from typing import Any

import pytest

from snakepit_bridge._host_errors import create
from snakepit_bridge.errors import HostToolError


class MissingError(Exception):
    """An exception of a program."""

    class InnerError(Exception):
        """A nested exception."""


class SlottedError(Exception):
    """Rejects the attribute `code`."""

    @property
    def code(self) -> str:
        return "own"


class TwoArgumentsError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first, second)


class RaisingError(Exception):
    def __new__(cls, *_: object) -> Any:
        raise SystemExit(3)


class DisguisedError(Exception):
    def __new__(cls, *_: object) -> Any:
        return "no exception"


def failure(python_type: str) -> Any:
    return create("E: no", "find", "no", "E", "not_found", {"left": 3}, python_type)


@pytest.mark.parametrize(
    ("python_type", "kind"),
    [
        ("KeyError", KeyError),
        ("TimeoutError", TimeoutError),
        (f"{__name__}:MissingError", MissingError),
        (f"{__name__}:MissingError.InnerError", MissingError.InnerError),
    ],
)
def test_the_exception_has_the_class_that_the_tool_chose(python_type: str, kind: type[Any]) -> None:
    error = failure(python_type)
    assert type(error) is kind
    assert error.args == ("no",)
    assert (error.tool_name, error.type_name, error.code, error.data) == ("find", "E", "not_found", {"left": 3})


@pytest.mark.parametrize(
    "python_type",
    [
        "",
        "NoSuchError",
        "print",
        "int",
        "KeyboardInterrupt",
        "SystemExit",
        "GeneratorExit",
        "StopIteration",
        "StopAsyncIteration",
        "UnicodeDecodeError",
        "no_such_module:Error",
        "os:path",
        "os:",
        ":",
        f"{__name__}:failure",
        f"{__name__}:TwoArgumentsError",
        f"{__name__}:RaisingError",
        f"{__name__}:DisguisedError",
    ],
)
def test_any_other_class_becomes_a_host_tool_error(python_type: str) -> None:
    error = failure(python_type)
    assert type(error) is HostToolError
    assert str(error) == "E: no"
    assert (error.tool_name, error.type_name, error.code, error.data) == ("find", "E", "not_found", {"left": 3})


def test_a_class_may_reject_an_attribute() -> None:
    error = failure(f"{__name__}:SlottedError")
    assert (type(error), error.code, error.data) == (SlottedError, "own", {"left": 3})
