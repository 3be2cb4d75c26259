"""How the type of an exception is named: as the last line of Python's own traceback names it."""

from __future__ import annotations

import traceback

import pytest

from snakepit_bridge._failures import describe


class Shelf:
    class EmptyError(Exception):
        pass


class OfMainError(Exception):
    __module__ = "__main__"


class OfNowhereError(Exception):
    pass


OfNowhereError.__module__ = 7  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [ValueError, Shelf.EmptyError, OfMainError, OfNowhereError, BrokenPipeError])
def test_a_type_is_named_as_the_traceback_names_it(kind: type[Exception]) -> None:
    error = kind("why")
    last = traceback.format_exception_only(kind, error)[-1].strip()
    name, message, _ = describe(error)
    assert f"{name}: {message}" == last


def test_a_nested_class_has_its_module_and_the_classes_around_it() -> None:
    assert describe(Shelf.EmptyError("why"))[0] == f"{__name__}.Shelf.EmptyError"
