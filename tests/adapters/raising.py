"""Functions that check the exception of an action."""

from collections.abc import Callable
from typing import TypeVar

_E = TypeVar("_E", bound=BaseException)


def raised(kind: type[_E], action: Callable[[], object]) -> _E:
    """Returns the exception of an action, whose type must be exactly `kind`."""
    caught = None
    try:
        action()
    except kind as error:
        caught = error
    assert type(caught) is kind, repr(caught)
    return caught


def error_message(kind: type[BaseException], action: Callable[[], object]) -> str:
    """Returns the message of the exception of an action, whose type must be exactly `kind`."""
    return str(raised(kind, action))
