"""Checks the arguments of the context's methods. Errors name the argument.

Values are not checked here. Writing a value reports a type without a wire form.
"""

from __future__ import annotations

# `operator` and `collections.abc` load more than is needed here, which takes a tenth of a worker's start.
import _operator as operator
from _collections_abc import Iterable, Mapping

from snakepit_bridge._failures import type_name
from snakepit_bridge.errors import InvalidArgumentError, InvalidTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The largest version and limit in the protocol.
_LARGEST = 2**31 - 1


def wrong_type(description: str, value: object, expected: str) -> InvalidTypeError:
    """Return the error for an argument of the wrong type."""
    kind = type_name(type(value))
    described = "None" if value is None else f"{'an' if kind[0] in 'aeiou' else 'a'} `{kind}`"
    return InvalidTypeError(f"`{description}` is {described}, expected {expected}")


def text(description: str, value: object, expected: str = "a str") -> str:
    """Check a string, which may be empty."""
    if not isinstance(value, str):
        raise wrong_type(description, value, expected)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidArgumentError(f"`{description}` is {value!a}, which cannot be encoded as UTF-8") from None
    return value


def name(description: str, value: object) -> str:
    """Check a name or id, which must not be empty."""
    checked = text(description, value)
    if not checked:
        raise InvalidArgumentError(f"`{description}` is empty, expected a name")
    return checked


def names(description: str, value: object) -> list[str]:
    """Check several names. Reject a single string, because Python would iterate over its letters."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise wrong_type(description, value, "a list of str")
    return [name(f"{description}[{index}]", item) for index, item in enumerate(value)]


def flag(description: str, value: object) -> bool:
    """Check a boolean. Reject other values, because `"no"` would count as true."""
    if not isinstance(value, bool):
        raise wrong_type(description, value, "a bool")
    return value


def integer(description: str, value: object, expected: str = "an int", least: int = 0, most: int = _LARGEST) -> int:
    """Check an integer, which may be a numpy integer but not a boolean."""
    # Python looks up `__index__` on the type. The attribute of an object may be missing or raise.
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise wrong_type(description, value, expected)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except Exception as error:
        # An array has the method, which works only for an array of one integer.
        raise wrong_type(description, value, expected) from error
    if not least <= number <= most:
        raise InvalidArgumentError(f"`{description}` is {number}, expected an int from {least} to {most}")
    return number


def seconds(description: str, value: object) -> float | None:
    """Check a duration above zero."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(description, value, "a number of seconds or None")
    if not 0 < value < float("inf"):
        raise InvalidArgumentError(f"`{description}` is {value}, expected more than 0 seconds")
    return float(value)


def version(description: str, value: object) -> int | None:
    """Check an expected version of a variable."""
    return None if value is None else integer(description, value, "an int or None")


def mapping(description: str, value: object, expected: str = "a mapping") -> dict[str, Any]:
    """Check a mapping with names as keys."""
    if not isinstance(value, Mapping):
        raise wrong_type(description, value, expected)
    return {name(f"{description} key {key!r}", key): item for key, item in value.items()}


def versions(description: str, value: object) -> dict[str, int]:
    """Check expected versions of variables."""
    checked = {} if value is None else mapping(description, value, "a mapping or None")
    return {key: integer(f"{description}[{key!r}]", item) for key, item in checked.items()}


def metadata(value: object) -> dict[str, str]:
    """Check metadata."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise wrong_type("metadata", value, "a mapping of str to str, or None")
    return {text(f"metadata key {key!r}", key): text(f"metadata[{key!r}]", item) for key, item in value.items()}


def amount(description: str, value: object) -> float:
    """Check a number that is neither negative nor infinite."""
    kind = type(value)
    if isinstance(value, bool) or not (hasattr(kind, "__float__") or hasattr(kind, "__index__")):
        raise wrong_type(description, value, "a number")
    try:
        number = float(value)  # type: ignore[arg-type]
    except Exception as error:
        raise wrong_type(description, value, "a number") from error
    if not 0 <= number < float("inf"):
        raise InvalidArgumentError(f"`{description}` is {number}, expected a finite number of at least 0")
    return number
