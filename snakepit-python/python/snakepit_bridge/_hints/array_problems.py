"""The items of lists and arrays that an array hint rejects, with the reasons."""

from __future__ import annotations

import numpy as np

from snakepit_bridge._hints.base import MAX_PROBLEMS, InvalidError, collect, describe, invalid, show
from snakepit_bridge._hints.containers import count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Problems = list[tuple[str, str]]

#: The types of the items of lists.
_NUMBERS = (bool, int, float, np.bool_, np.number)


def check_list(value: Any, *, is_text: bool = False) -> None:
    """Check that a list and the lists in it have equal lengths, and that their items are numbers, or strings.

    Raises:
        InvalidError: They do not. The problems have the paths of the items.
    """
    lengths: list[int] = []
    first = value
    while _is_list(first):
        lengths.append(len(first))
        if not len(first):
            break
        first = first[0]
    problems: Problems = []
    _check(value, lengths, "", problems, is_text=is_text)
    if problems:
        raise InvalidError(problems)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _check(value: Any, lengths: list[int], path: str, problems: Problems, *, is_text: bool) -> None:
    expected = "a list" if lengths else "a string" if is_text else "a number"
    if _is_list(value):
        if not lengths:
            collect(problems, path, invalid(f"is a list, expected {expected}"))
        elif len(value) != lengths[0]:
            length = f"expected {lengths[0]}, as in the first list"
            collect(problems, path, invalid(f"has {count(len(value), 'item')}, {length}"))
        else:
            for index, item in enumerate(value):
                _check(item, lengths[1:], f"{path}[{index}]", problems, is_text=is_text)
    elif lengths or not isinstance(value, str if is_text else _NUMBERS):
        collect(problems, path, invalid(f"{describe(value)}, expected {expected}"))
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        collect(problems, path, invalid(f"is {show(value)}, which has more than 64 bits"))


def conversion_error(array: Any, targets: list[Any]) -> InvalidError:
    """Return the error for the items of an array that none of several data types can represent."""
    rejected = [(target, _rejected(array, target)) for target in targets]
    # The type that represents most of the items explains the others.
    target, mask = min(rejected, key=lambda pair: int(np.count_nonzero(pair[1])))
    problems: Problems = []
    for index in np.argwhere(mask)[: MAX_PROBLEMS + 1]:
        path = "".join(f"[{step}]" for step in index)
        problems.append((path, _reason(array[tuple(index)].item(), target)))
    return InvalidError(problems)


def _rejected(array: Any, target: Any) -> Any:
    """Return for each item whether the conversion to a data type would change it."""
    kind = array.dtype.kind
    if (kind == "b") != (target.kind == "b") or (kind == "c" and target.kind != "c"):
        return np.ones(array.shape, bool)
    with np.errstate(all="ignore"):
        converted = array.astype(target)
    # Floats may be rounded to a shorter type. All other values must stay the same.
    if target.kind in "fc" and kind in "fc":
        return np.isfinite(array) & ~np.isfinite(converted)
    return ~equal(array, converted)


def equal(array: Any, converted: Any) -> Any:
    """Return for each item whether the conversion kept its value."""
    same = converted == array
    for integers, floats in ((array, converted.real), (converted, array.real)):
        if integers.dtype.kind in "iu" and floats.dtype.kind == "f":
            # The comparison above rounds integers to floats.
            limit = 2.0 ** (8 * integers.itemsize - (integers.dtype.kind == "i"))
            with np.errstate(all="ignore"):
                same = same & (floats < limit) & (floats.astype(integers.dtype) == integers)
    return same


def _reason(value: Any, target: Any) -> str:
    shown = f"is {show(value)}"
    if isinstance(value, bool) or target.kind == "b":
        return f"{shown}, expected {'a boolean' if target.kind == 'b' else 'a number'}"
    if isinstance(value, complex) and target.kind != "c":
        return f"{shown}, expected a real number"
    if target.kind in "iu" and value != value // 1:
        # NaN and infinities also fail this comparison.
        return f"{shown}, expected an integer"
    limits: Any = np.iinfo(target) if target.kind in "iu" else np.finfo(target)
    if not isinstance(value, complex):
        number = int if target.kind in "iu" else float
        if value > number(limits.max):
            return f"{shown}, above {limits.max!s}, the maximum of {target.name}"
        if value < number(limits.min):
            return f"{shown}, below {limits.min!s}, the minimum of {target.name}"
    return f"{shown}, which {target.name} cannot represent"
