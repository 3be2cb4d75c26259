"""The names of exception types, which match those of Python's traceback."""

from __future__ import annotations

import traceback

import pytest

from snakepit_bridge._failures import describe


class Shelf:
    class EmptyError(Exception):
        pass


class MainModuleError(Exception):
    __module__ = "__main__"


class UnknownModuleError(Exception):
    pass


UnknownModuleError.__module__ = 7  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [ValueError, Shelf.EmptyError, MainModuleError, UnknownModuleError, BrokenPipeError])
def test_type_names_match_the_traceback(kind: type[Exception]) -> None:
    error = kind("why")
    last = traceback.format_exception_only(kind, error)[-1].strip()
    name, message, _ = describe(error)
    assert f"{name}: {message}" == last


def test_the_name_of_a_nested_class_includes_its_module_and_outer_classes() -> None:
    assert describe(Shelf.EmptyError("why"))[0] == f"{__name__}.Shelf.EmptyError"
