"""What a check expects to be refused."""

from collections.abc import Callable
from typing import TypeVar

_E = TypeVar("_E", bound=BaseException)


def raised(kind: type[_E], action: Callable[[], object]) -> _E:
    """Return the exception that an action raises, which must be of this very type."""
    caught = None
    try:
        action()
    except kind as error:
        caught = error
    assert type(caught) is kind, repr(caught)
    return caught


def said(kind: type[BaseException], action: Callable[[], object]) -> str:
    """Return the message of the exception that an action raises, which must be of this very type."""
    return str(raised(kind, action))
