"""Hints for numpy arrays and numbers: data types and shapes are enforced in both directions."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from snakepit_bridge._hints.base import MAX_PROBLEMS, HintError, InvalidError
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
    ("hint", "value", "problems"),
    [
        (npt.NDArray[np.float32], "x", {"": "is a string, expected array of float32"}),
        (npt.NDArray[np.float32], ["a"], {"[0]": "is a string, expected a number"}),
        (npt.NDArray[np.float32], [[1, None], ["a", 2]], {"[0][1]": "is a null, ", "[1][0]": "is a string, "}),
        (
            np.ndarray,
            [[1], [1, 2], 3, [[4]]],
            {
                "[1]": "has 2 items, expected 1, as in the first list",
                "[2]": "is an integer, expected a list",
                "[3][0]": "is a list, expected a number",
            },
        ),
        (np.ndarray, [1, 2**64], {"[1]": "is 18446744073709551616, which has more than 64 bits"}),
        (
            npt.NDArray[np.float32],
            [1, 1e300, -1e300],
            {
                "[1]": "is 1e+300, above 3.4028235e+38, the maximum of float32",
                "[2]": "is -1e+300, below -3.4028235e+38, the minimum of float32",
            },
        ),
        (npt.NDArray[np.float32], 1e300, {"": "is 1e+300, above 3.4028235e+38, the maximum of float32"}),
        (
            npt.NDArray[np.int64],
            [1.5, 2, float("nan"), float("inf")],
            {
                "[0]": "is 1.5, expected an integer",
                "[2]": "is nan, expected an integer",
                "[3]": "is inf, expected an integer",
            },
        ),
        (
            npt.NDArray[np.uint8],
            [[256, 1], [-1, 2]],
            {
                "[0][0]": "is 256, above 255, the maximum of uint8",
                "[1][0]": "is -1, below 0, the minimum of uint8",
            },
        ),
        (npt.NDArray[np.int8], np.array([300]), {"[0]": "is 300, above 127, the maximum of int8"}),
        (npt.NDArray[np.float64], [2**53 + 1], {"[0]": "is 9007199254740993, which float64 cannot represent"}),
        (npt.NDArray[np.float64], [2**63 - 1], {"[0]": "is 9223372036854775807, which float64 cannot represent"}),
        (npt.NDArray[np.float64], [2**64 - 1], {"[0]": "is 18446744073709551615, which float64 cannot represent"}),
        (npt.NDArray[np.complex128], [2**53 + 1], {"[0]": "is 9007199254740993, which complex128 cannot represent"}),
        (npt.NDArray[np.int64], [2.0**63], {"[0]": "is 9.223372036854776e+18, above 9223372036854775807, the maximum"}),
        (npt.NDArray[np.bool_], [1], {"[0]": "is 1, expected a boolean"}),
        (npt.NDArray[np.float32], [True], {"[0]": "is True, expected a number"}),
        (npt.NDArray[np.float32], np.array([1, 2j]), {"[0]": "is (1+0j), expected a real", "[1]": "is 2j, expected a"}),
        (npt.NDArray[np.int8 | np.int16], [300, 2**20], {"[1]": "is 1048576, above 32767, the maximum of int16"}),
        (npt.NDArray[np.str_], ["a", 1], {"[1]": "is an integer, expected a string"}),
        (npt.NDArray[np.str_], [1], {"[0]": "is an integer, expected a string"}),
        (npt.NDArray[np.str_], np.array([1]), {"": "is an array of int64, expected array of str_"}),
        (Matrix, [[1, 2]], {"": "has the shape (1, 2), expected (any, 3)"}),
        (Matrix, [1], {"": "has the shape (1,), expected (any, 3)"}),
        (np.uint8, 300, {"": "is 300, above 255, the maximum of uint8"}),
        (np.uint8, 1.5, {"": "is 1.5, expected an integer"}),
        (np.float32, True, {"": "is a boolean, expected float32"}),
        (np.float64, 2**53 + 1, {"": "is 9007199254740993, which float64 cannot represent"}),
    ],
)
def test_items_that_do_not_fit_are_named_with_the_reason(hint: Any, value: Any, problems: dict[str, str]) -> None:
    with pytest.raises(InvalidError) as caught:
        read(hint, value)
    found = dict(caught.value.problems)
    assert found.keys() == problems.keys()
    for path, problem in problems.items():
        assert found[path].startswith(problem)


def test_the_problems_of_an_array_are_bounded() -> None:
    for hint, value in ((npt.NDArray[np.uint8], [300] * 1000), (np.ndarray, [1, *["a"] * 1000])):
        with pytest.raises(InvalidError) as caught:
            read(hint, value)
        assert len(caught.value.problems) == MAX_PROBLEMS + 1


def test_arrays_of_strings_and_of_objects_have_lists_as_their_form() -> None:
    texts = read(npt.NDArray[np.str_], [["a", "bcd"]])
    assert (texts.dtype, texts.tolist()) == (np.dtype("U3"), [["a", "bcd"]])
    assert read(npt.NDArray[np.str_], []).dtype.kind == "U"
    objects = read(npt.NDArray[np.object_], ["a", None, 1.5])
    assert (objects.dtype, objects.tolist()) == (np.dtype(object), ["a", None, 1.5])
    for hint, array in ((npt.NDArray[np.str_], texts), (npt.NDArray[np.object_], objects)):
        assert Compiler(globals()).top_level(hint).write(array) is array


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
        (npt.NDArray[np.datetime64], "whose items have no JSON form; use numbers or strings"),
        ("np.ndarray[tuple[str], np.dtype[np.int64]]", "whose axis `<class 'str'>` is neither"),
        (np.complex64, "is `numpy.complex64`, which has no JSON form; use an array"),
        (np.datetime64, "is `numpy.datetime64`, which has no JSON form; use `datetime`"),
        (np.ma.MaskedArray, "which has no JSON form"),
    ],
)
def test_hints_of_arrays_that_are_not_supported(hint: Any, needle: str) -> None:
    with pytest.raises(HintError) as caught:
        Compiler(globals()).top_level(hint)
    assert needle in str(caught.value)
