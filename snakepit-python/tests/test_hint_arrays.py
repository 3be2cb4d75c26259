"""Hints of numpy arrays and numbers: data types and shapes are enforced in both directions."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from snakepit_bridge._hints.base import HintError, InvalidError
from snakepit_bridge._hints.compiler import Compiler

Matrix = np.ndarray[tuple[int, Literal[3]], np.dtype[np.float32]]


def read(hint: Any, value: Any) -> Any:
    return Compiler(globals()).top_level(hint).read(value)


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (np.ndarray, [[1, 2]], np.array([[1, 2]])),
        (npt.NDArray[Any], [1.5], np.array([1.5])),
        (npt.ArrayLike, [1.5], np.array([1.5])),
        (npt.NDArray[np.float32], [1, 2], np.array([1, 2], np.float32)),
        (npt.NDArray[np.float32], [], np.array([], np.float32)),
        (npt.NDArray[np.float32], 1.5, np.array(1.5, np.float32)),
        (npt.NDArray[np.float32], np.array([0.1]), np.array([0.1], np.float32)),
        (npt.NDArray[np.float64], [float("nan"), float("inf")], np.array([np.nan, np.inf])),
        (npt.NDArray[np.float32], [float("nan"), float("inf")], np.array([np.nan, np.inf], np.float32)),
        (npt.NDArray[np.int64], [1.0, 2], np.array([1, 2])),
        (npt.NDArray[np.uint8], [0, 255], np.array([0, 255], np.uint8)),
        (npt.NDArray[np.bool_], [True, False], np.array([True, False])),
        (npt.NDArray[np.float64], [2**53, -(2**63)], np.array([2.0**53, -(2.0**63)])),
        (npt.NDArray[np.complex128], [2**53], np.array([2.0**53 + 0j])),
        (npt.NDArray[np.floating[Any]], [1, 2], np.array([1.0, 2.0])),
        (npt.NDArray[np.floating[Any]], np.array([1], np.float16), np.array([1], np.float16)),
        (npt.NDArray[np.integer[Any]], [1.0], np.array([1])),
        (npt.NDArray[np.float32 | np.float64], np.array([1.0]), np.array([1.0])),
        (Matrix, [[1, 2, 3]], np.array([[1, 2, 3]], np.float32)),
        (list[npt.NDArray[np.float32]], [[1]], [np.array([1], np.float32)]),
        (np.float32, 1, np.float32(1)),
        (np.uint8, 255.0, np.uint8(255)),
        (np.bool_, True, np.True_),
    ],
)
def test_lists_and_arrays_become_arrays_of_the_type(hint: Any, value: Any, expected: Any) -> None:
    got = read(hint, value)
    for one, other in zip(got, expected, strict=True) if isinstance(expected, list) else [(got, expected)]:
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_an_array_of_the_right_type_is_not_copied() -> None:
    array = np.zeros((2, 3), np.float32)
    for hint in (npt.NDArray[np.float32], npt.NDArray[np.floating[Any]], Matrix):
        assert read(hint, array) is array


@pytest.mark.parametrize(
    ("hint", "value", "problem"),
    [
        (npt.NDArray[np.float32], "x", "is a string, expected array of float32"),
        (npt.NDArray[np.float32], ["a"], "has items of dtype `str32`, expected numbers"),
        (npt.NDArray[np.float32], [[1], [1, 2]], "cannot be converted to an array: setting an array element"),
        (npt.NDArray[np.float32], [1e300], "is an array of float64, expected array of float32"),
        (npt.NDArray[np.int64], [1.5], "is an array of float64, expected array of int64"),
        (npt.NDArray[np.uint8], [256], "is an array of int64, expected array of uint8"),
        (npt.NDArray[np.uint8], [-1], "is an array of int64, expected array of uint8"),
        (npt.NDArray[np.int8], np.array([300]), "is an array of int64, expected array of int8"),
        (npt.NDArray[np.float64], [2**53 + 1], "is an array of int64, expected array of float64"),
        (npt.NDArray[np.float64], [2**63 - 1], "is an array of int64, expected array of float64"),
        (npt.NDArray[np.float64], [2**64 - 1], "is an array of uint64, expected array of float64"),
        (npt.NDArray[np.complex128], [2**53 + 1], "is an array of int64, expected array of complex128"),
        (npt.NDArray[np.int64], [2.0**63], "is an array of float64, expected array of int64"),
        (npt.NDArray[np.bool_], [1], "is an array of int64, expected array of bool"),
        (npt.NDArray[np.float32], [True], "is an array of bool, expected array of float32"),
        (Matrix, [[1, 2]], "has the shape (1, 2), expected (any, 3)"),
        (Matrix, [1], "has the shape (1,), expected (any, 3)"),
        (np.uint8, 300, "is 300, expected uint8"),
        (np.float32, True, "is a boolean, expected float32"),
        (np.float64, 2**53 + 1, "is 9007199254740993, expected float64"),
    ],
)
def test_arrays_that_do_not_fit(hint: Any, value: Any, problem: str) -> None:
    with pytest.raises(InvalidError) as caught:
        read(hint, value)
    ((path, found),) = caught.value.problems
    assert path == ""
    assert found.startswith(problem)


def test_results_must_have_the_type_and_shape() -> None:
    compiler = Compiler(globals())
    hint = compiler.top_level(Matrix)
    array = np.zeros((2, 3), np.float32)
    assert hint.write(array) is array
    assert compiler.top_level(np.float32).write(np.float32(1)) == 1.0
    for value, problem in [
        (np.zeros((2, 3)), "is an array of float64, expected array of float32 with 2 axes"),
        (np.zeros((2, 2), np.float32), "has the shape (2, 2), expected (any, 3)"),
        ([[1, 2, 3]], "is a list, expected array of float32 with 2 axes"),
    ]:
        with pytest.raises(InvalidError) as caught:
            hint.write(value)
        assert caught.value.problems == [("", problem)]


@pytest.mark.parametrize(
    ("hint", "needle"),
    [
        (npt.NDArray[np.str_], "whose items have no JSON form; use numbers"),
        (npt.NDArray[np.datetime64], "whose items have no JSON form; use numbers"),
        ("np.ndarray[tuple[str], np.dtype[np.int64]]", "whose axis `<class 'str'>` is neither"),
        (np.complex64, "is `numpy.complex64`, which has no JSON form"),
        (np.ma.MaskedArray, "which has no JSON form"),
    ],
)
def test_hints_of_arrays_that_are_not_supported(hint: Any, needle: str) -> None:
    with pytest.raises(HintError) as caught:
        Compiler(globals()).top_level(hint)
    assert needle in str(caught.value)
