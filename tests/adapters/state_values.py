"""Scenarios of `state_checks` for the values of variables."""

import math

import numpy as np

from raising import error_message
from snakepit_bridge import BatchError, SessionContext, ValidationError, VariableType


def is_same(value: object, expected: list[float]) -> bool:
    """Whether a value is this list of numbers, bit for bit."""
    return type(value) is list and np.array(value).tobytes() == np.array(expected, dtype=np.float64).tobytes()


def check_values(context: SessionContext) -> None:
    """Values survive a round trip, bit for bit."""
    context.register_variable("number", "float", 1)
    assert type(context["number"]) is float
    for number in [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan]:
        context["number"] = number
        assert math.copysign(1, context["number"]) == math.copysign(1, number)
        assert context["number"] == number or (math.isnan(number) and math.isnan(context["number"]))
    context.register_variable("integer", None, -(2**63))
    assert context["integer"] == -(2**63)
    context["integer"] = np.int64(7)
    assert context["integer"] == 7
    text = 'ünïcödé \U0001f40d "quoted" \x00'
    context[text.replace("\x00", "")] = text
    assert context[text.replace("\x00", "")] == text
    context.register_variable("mode", "choice", "fast", {"choices": ["fast", "slow"]})
    context.register_variable("code", "module", "math", {"allowed_modules": ["math"]})
    assert (context["mode"], context["code"]) == ("fast", "math")

    # The protocol encodes arrays larger than 10,240 bytes differently.
    for array in [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6, dtype=">i2"),
        np.array(7.5),
        np.zeros((0, 3)),
        np.array([True, False]),
        np.linspace(0, 1, 1280),
        np.linspace(0, 1, 5000, dtype=np.float32),
        np.random.default_rng(1).normal(size=(300, 400)).T,
    ]:
        context["array"] = array
        back = context["array"]
        assert (back.shape, back.dtype) == (array.shape, array.dtype.newbyteorder("=")), array.dtype
        np.testing.assert_array_equal(back, array)
        assert back.flags.writeable

    context.register_variable("shaped", "tensor", [[1, 2], [3, 4]], {"shape": [2, 2]})
    assert context["shaped"] == [[1, 2], [3, 4]]
    context["shaped"] = np.eye(2, dtype=np.float32)
    assert context["shaped"].dtype == np.float32
    context.register_variable("vector", VariableType.EMBEDDING, [0.5, 1.0, 1.5], {"dimensions": 3})
    assert context["vector"] == [0.5, 1.0, 1.5]
    context["vector"] = np.array([1, 2, 3], dtype=np.float32)
    assert context["vector"].dtype == np.float32
    large = np.arange(4000, dtype=np.float32)
    context.register_variable("large", "embedding", large)
    assert context.variable("large").type == "embedding"
    np.testing.assert_array_equal(context["large"], large)
    many = context.get_variables(["large", "vector", "number"])
    np.testing.assert_array_equal(many["large"], large)
    np.testing.assert_array_equal(context.list_variables("large")[0].value, large)
    np.testing.assert_array_equal(context.variable_history("large")[0].value, large)


def check_large_lists(context: SessionContext) -> None:
    """Lists of numbers stay lists, bit for bit, even if the protocol sends them as buffers."""
    random = np.random.default_rng(2)
    many = random.normal(size=200_000).tolist()
    many[:5] = [-0.0, 5e-324, math.inf, -math.inf, 7]
    context.register_variable("vector", "embedding", many, {"dimensions": 200_000})
    assert is_same(context["vector"], many)
    assert context.variable("vector").type == "embedding"
    # The host checks the length of buffers too.
    assert "dimensions" in error_message(ValidationError, lambda: context.set_variable("vector", many[1:]))
    backwards = many[::-1]
    context["vector"] = backwards
    assert is_same(context.update("vector", lambda vector: vector[::-1]), many)
    assert is_same(context["vector"], many)
    assert [is_same(entry.value, many) for entry in context.variable_history("vector")] == [True, False, True]

    table = random.normal(size=(40, 50, 2)).tolist()
    context.register_variable("table", "tensor", table, {"shape": [40, 50, 2]})
    context.register_variable("losses", None, [0.5])
    context["plain"] = many[5:5000]
    watch = context.watch("table")
    context.set_variables({"table": table[::-1], "losses": many[5:5000]})
    with context.batch_updates(atomic=False) as batch:
        batch["losses"] = table
        batch["table"] = [[[np.float32(0.5), 1]] * 50, *[np.zeros((50, 2))] * 39]
    assert context["losses"] == table
    assert context["plain"] == many[5:5000]
    assert [context.variable(name).type for name in ("losses", "plain")] == ["list", "list"]
    first, second = next(watch).variable, next(watch).variable
    assert first is not None
    assert second is not None
    assert first.value == table[::-1]
    assert second.value == [[[0.5, 1]] * 50, *[[[0.0, 0.0]] * 50] * 39]
    assert "ghost" in error_message(BatchError, lambda: context.set_variables({"table": table, "ghost": table}))

    # Short lists are sent as buffers if they contain numbers that JSON cannot represent.
    context.register_variable("short", "embedding", [-math.inf, 1.0, math.inf])
    assert is_same(context["short"], [-math.inf, 1.0, math.inf])
    context["short"] = [math.nan, 0.5]
    assert is_same(context["short"], [math.nan, 0.5])

    # Values that floats cannot represent exactly, and nested lists that are not arrays, are sent as JSON.
    mixed: list[list[float]] = [list(range(20_000)), [0.5, *[2**53 + 1] * 2000], [True, 0.5] * 3000]
    for value in mixed:
        context.register_variable("mixed", "tensor", value)
        assert context["mixed"] == value
        assert [type(item) for item in context["mixed"]] == [type(item) for item in value]
        del context["mixed"]
    ragged = [[0.5] * 3000, [0.5] * 2999]
    assert "of equal length" in error_message(
        ValidationError, lambda: context.register_variable("ragged", "tensor", ragged)
    )
    assert "flat" in error_message(ValidationError, lambda: context.register_variable("nested", "embedding", table))
