"""Scenarios of session state: variables, batches, watches, programs.

The same scenarios run with a host (`tests/tests/python_state.rs`) and with the in-memory host of
`snakepit_bridge.testing` (`snakepit-python/tests/test_variables.py`).
"""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np

from argument_checks import check_arguments, check_other_arguments
from raising import error_message, raised
from snakepit_bridge import (
    AlreadyExistsError,
    BatchError,
    InvalidArgumentError,
    InvalidTypeError,
    LimitExceededError,
    NotFoundError,
    ProgramNotFoundError,
    SessionContext,
    ValidationError,
    VariableNotFoundError,
    VariableType,
    VersionConflictError,
)
from state_values import check_large_lists, check_values


def check_lifecycle(context: SessionContext) -> None:
    """A variable exists from its registration to its deletion."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    identifier = context.register_variable("rate", VariableType.FLOAT, 0.5, {"min": 0, "max": 1}, {"unit": "1/s"})
    assert identifier.startswith("var_"), identifier
    variable = context.variable("rate")
    assert (variable.id, variable.name, variable.type, variable.version) == (identifier, "rate", "float", 0)
    assert (variable.value, variable.constraints) == (0.5, {"min": 0, "max": 1})
    assert (variable.metadata, variable.source) == ({"unit": "1/s"}, "python")
    assert before < variable.updated_at < datetime.now(UTC) + timedelta(seconds=1)
    assert repr(variable) == 'Variable(name="rate", type="float", version=0)'

    assert context.set_variable("rate", 1, {"why": "louder"}) == 1
    assert context.set_variable(identifier, 0.25, expected_version=1) == 2
    assert context.get_variable("rate") == context.get_variable(identifier) == 0.25
    assert variable.value == 0.5
    later = context.variable(identifier)
    assert later.metadata == {"unit": "1/s", "why": "louder"}

    history = context.variable_history("rate")
    assert [(entry.version, entry.value) for entry in history] == [(2, 0.25), (1, 1.0), (0, 0.5)]
    assert [entry.metadata for entry in history] == [{}, {"why": "louder"}, {"unit": "1/s"}]
    assert {entry.changed_by for entry in history} == {context.worker_id}
    assert len(context.variable_history("rate", 2)) == 2
    rolled = context.rollback_variable("rate", 0)
    assert (rolled.value, rolled.version, rolled.source) == (0.5, 3, "python")
    last = context.variable_history("rate")[0]
    assert (last.version, last.changed_by, last.metadata) == (3, context.worker_id, {})

    context["ratio"] = 2
    context["other"] = "x"
    assert [variable.name for variable in context.list_variables("ra*")] == ["rate", "ratio"]
    assert [variable.name for variable in context.list_variables()] == ["other", "rate", "ratio"]
    assert context.get_variables(["rate", "other"]) == {"rate": 0.5, "other": "x"}

    context.delete_variable("rate")
    assert "rate" not in context
    assert context.get("rate") is None
    assert context.get("rate", 7) == 7
    assert context.get("other") == "x"


def check_mapping(context: SessionContext) -> None:
    """Items and attributes access variables, and writing a missing one registers it."""
    for name, value, kind in [
        ("flag", True, "boolean"),
        ("count", 3, "integer"),
        ("rate", 0.5, "float"),
        ("text", "x", "string"),
        ("items", [1, "a", None], "list"),
        ("table", {"a": {"b": [1.5]}}, "map"),
        ("image", np.zeros((2, 2)), "tensor"),
    ]:
        context[name] = value
        assert context.variable(name).type == kind, name
        assert context.variable(name).version == 0
        context[name] = value
        assert context.variable(name).version == 1
        assert name in context
    assert 3 not in context
    context.v.count += 1
    context.v.fresh = "y"
    assert (context["count"], context.v.fresh) == (4, "y")
    del context["count"]
    del context.v.fresh
    assert not hasattr(context.v, "count")
    assert "fresh" not in context
    assert "not found" in error_message(AttributeError, lambda: context.v.fresh)
    error_message(TypeError, lambda: iter(context))  # type: ignore[call-overload]


def check_errors(context: SessionContext) -> None:
    """Each kind of error has its class and names the problem."""
    context.register_variable("rate", "float", 0.5, {"max": 1})
    assert "above maximum 1" in error_message(ValidationError, lambda: context.set_variable("rate", 2))
    assert "type float" in error_message(ValidationError, lambda: context.set_variable("rate", "fast"))
    assert isinstance(ValidationError("x"), ValueError)
    assert "`rate` already exists" in error_message(
        AlreadyExistsError, lambda: context.register_variable("rate", None, 1)
    )
    assert "above maximum 1" in error_message(
        ValidationError, lambda: context.register_variable("x", "float", 2, {"max": 1})
    )
    assert "`maximum`" in error_message(
        InvalidArgumentError, lambda: context.register_variable("x", "float", 2, {"maximum": 1})
    )
    assert "decimal" in error_message(InvalidArgumentError, lambda: context.register_variable("x", "decimal", 2))
    assert "name" in error_message(InvalidArgumentError, lambda: context.register_variable("a*", None, 2))
    assert "null" in error_message(InvalidArgumentError, lambda: context.register_variable("x", None, None))
    assert "variable `x` is a `complex`" in error_message(
        InvalidTypeError, lambda: context.register_variable("x", None, 1j)
    )
    assert "x" not in context

    actions = [
        lambda: context.get_variable("ghost"),
        lambda: context["ghost"],
        lambda: context.variable("ghost"),
        lambda: context.set_variable("ghost", 1),
        lambda: context.delete_variable("ghost"),
        lambda: context.variable_history("ghost"),
        lambda: context.rollback_variable("ghost", 0),
        lambda: context.update("ghost", lambda value: value),
        lambda: context.get_variables(["rate", "ghost"]),
        lambda: context.watch("ghost"),
    ]
    for action in actions:
        message = error_message(VariableNotFoundError, action)
        assert "`ghost` not found" in message, message
        assert not message.startswith(("'", '"')), message
    assert issubclass(VariableNotFoundError, KeyError | NotFoundError)
    assert "version 7" in error_message(NotFoundError, lambda: context.rollback_variable("rate", 7))
    assert context.variable("rate").version == 0


def check_limits(context: SessionContext) -> None:
    """Values that are too large and variables that are too many raise errors."""
    too_large = np.zeros(11 * 2**20, dtype=np.int8)
    assert "above the limit" in error_message(ValidationError, lambda: context.register_variable("x", None, too_large))
    for number in range(1000):
        context.register_variable(f"n{number}", None, number)
    assert "limit of" in error_message(LimitExceededError, lambda: context.register_variable("x", None, 1))
    assert len(context.list_variables("n99*")) == 11
    assert context.get_variables(f"n{number}" for number in range(1000))["n999"] == 999


def check_conflicts(context: SessionContext) -> None:
    """A write with a wrong expected version changes nothing, even at version 0. An update retries."""
    context["n"] = 0
    context.set_variable("n", 1, expected_version=0)
    conflict = raised(VersionConflictError, lambda: context.set_variable("n", 2, expected_version=0))
    assert (conflict.expected, conflict.actual) == (0, 1)
    assert "version 1" in str(conflict)
    assert "version 0" in str(conflict)
    assert context["n"] == 1

    calls = []

    def write_meanwhile(value: int) -> int:
        calls.append(value)
        if len(calls) < 3:
            context["n"] = 10 * len(calls)
        return value + 1

    assert context.update("n", write_meanwhile) == 21
    assert (calls, context["n"]) == ([1, 10, 20], 21)
    error_message(VersionConflictError, lambda: context.update("n", lambda _: context.set_variable("n", 0), retries=2))
    assert context.variable("n").version == 7

    def replace(value: int) -> int:
        # The new variable has version 0 too. The value computed from the old variable must not reach it.
        if value == 0:
            del context["n"]
            context["n"] = 100
        return value + 1

    context.set_variable("n", 0)
    assert context.update("n", replace) == 101
    assert (context["n"], context.variable("n").version) == (101, 1)


def check_batches(context: SessionContext) -> None:
    """A batch is sent when its block ends, and discarded if the block raises."""
    for name in "abc":
        context.register_variable(name, "integer", 0, {"max": 10})
    with context.batch_updates(metadata={"why": "batch"}) as batch:
        batch["a"] = 1
        batch["b"] = 1
        batch["b"] = 2
        assert context["a"] == 0
    assert context.get_variables(list("abc")) == {"a": 1, "b": 2, "c": 0}
    assert batch.versions == {"a": 1, "b": 1}
    assert context.variable_history("a")[0].metadata == {"why": "batch"}

    def fail() -> None:
        with context.batch_updates() as batch:
            batch["a"] = 5
            raise RuntimeError("no")

    error_message(RuntimeError, fail)
    with context.batch_updates():
        pass
    assert context["a"] == 1

    def write(atomic: bool) -> None:
        with context.batch_updates(atomic) as batch:
            batch.set("a", 9, expected_version=1)
            batch.set("b", 9, expected_version=0)
            batch["c"] = 11
            batch["ghost"] = 1

    for atomic, values in [(True, {"a": 1, "b": 2, "c": 0}), (False, {"a": 9, "b": 2, "c": 0})]:
        error = raised(BatchError, partial(write, atomic))
        assert error.versions == ({} if atomic else {"a": 2})
        # The errors are those of single writes.
        kinds = {"b": VersionConflictError, "c": ValidationError, "ghost": VariableNotFoundError}
        assert {name: type(reason) for name, reason in error.errors.items()} == kinds
        conflict = error.errors["b"]
        assert isinstance(conflict, VersionConflictError)
        assert (conflict.expected, conflict.actual) == (0, 1)
        assert str(error.errors["c"]) == error_message(ValidationError, lambda: context.set_variable("c", 11))
        assert all(str(reason) in str(error) for reason in error.errors.values())
        assert context.get_variables(list("abc")) == values

    twice = {"a": 1, context.variable("a").id: 2}
    error = raised(BatchError, lambda: context.set_variables(twice))
    assert [type(reason) for reason in error.errors.values()] == [InvalidArgumentError]
    assert "twice in one batch" in str(error)

    large = np.arange(3000.0)
    context["large"] = np.zeros(1)
    assert context.set_variables({"large": large, "a": 3}) == {"large": 1, "a": 3}
    np.testing.assert_array_equal(context["large"], large)
    assert "names none" in error_message(
        InvalidArgumentError, lambda: context.set_variables({"a": 1}, expected_versions={"b": 1})
    )
    results = context.update_variables({"a": 4, "b": 11})
    assert results["a"] is True
    assert "above maximum 10" in str(results["b"])
    assert not any(result is True for result in context.update_variables({"a": 5, "b": 11}, atomic=True).values())


def check_watches(context: SessionContext) -> None:
    """A watch delivers changes in order while other threads write."""
    context["n"] = 0
    context["m"] = 0
    with context.watch("n", initial=True) as watch:
        first = next(watch)
        assert first.variable is not None
        assert (first.kind, first.variable.name, first.variable.value, first.lost) == ("initial", "n", 0, 0)

        def write() -> None:
            context.set_variable("n", 1, {"why": "because"})
            context["m"] = 1
            context.rollback_variable("n", 0)
            del context["n"]
            context["n"] = np.arange(3000.0)

        writer = threading.Thread(target=write)
        writer.start()
        updates = [next(watch) for _ in range(4)]
        writer.join()
    assert [update.kind for update in updates] == ["set", "rolled_back", "deleted", "registered"]
    assert all(update.variable is not None and update.variable.name == "n" for update in updates)
    assert [update.variable.version for update in updates if update.variable] == [1, 2, 2, 0]
    assert updates[0].metadata == {"why": "because"}
    assert updates[0].source == context.worker_id
    assert updates[0].timestamp <= datetime.now(UTC)
    last = updates[3].variable
    assert last is not None
    np.testing.assert_array_equal(last.value, np.arange(3000.0))
    assert list(watch) == [], "the watch is closed"

    everything = context.watch()
    context["new"] = 1
    context["m"] = 2
    variables = [next(everything).variable, next(everything).variable]
    assert [variable.name for variable in variables if variable] == ["new", "m"]
    closing = threading.Timer(0.05, everything.close)
    closing.start()
    assert list(everything) == [], "closing the watch ends the iteration"
    closing.join()


def check_slow_readers(context: SessionContext) -> None:
    """A slow reader loses updates. It receives the number of lost ones, and the last update."""
    total = 2000
    context["text"] = ""
    watch = context.watch("text")
    for number in range(total):
        context["text"] = f"{number:20000}"
    received = lost = 0
    version = 0
    while version < total:
        update = next(watch)
        if update.variable is None:
            assert update.kind == "lost"
            assert update.lost > 0
            assert repr(update) == f'VariableUpdate(kind="lost", lost={update.lost})'
            lost += update.lost
        else:
            received += 1
            # The version counts every update, received or lost.
            assert update.variable.version == received + lost
            version = update.variable.version
    assert lost > 0
    assert received + lost == total


def check_sessions(context: SessionContext) -> None:
    """After the end of a session, its watches end and its variables raise errors."""
    context["n"] = 0
    watch = context.watch()
    context.cleanup()
    assert "not found" in error_message(NotFoundError, lambda: next(watch))
    assert list(watch) == []
    assert "not found" in error_message(NotFoundError, lambda: context["n"])

    def write() -> None:
        context["n"] = 1

    # The error refers to the session, not to the variable.
    error_message(NotFoundError, write)


async def check_coroutines(context: SessionContext) -> None:
    """A coroutine that waits for updates does not block others, and does not lose updates when it is cancelled."""
    context["n"] = 0
    with context.watch("n") as watch:

        async def write() -> None:
            for value in (1, 2, 3):
                await asyncio.sleep(0)
                context["n"] = value

        writing = asyncio.ensure_future(write())
        values = []
        async for update in watch:
            assert update.variable is not None
            values.append(update.variable.value)
            if len(values) == 3:
                break
        await writing
        assert values == [1, 2, 3]

        for value in range(20):
            waiting = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)
            context["n"] = value
            await asyncio.sleep(0.001 * (value % 3))
            waiting.cancel()
            try:
                update = await waiting
            except asyncio.CancelledError:
                update = await anext(watch)
            assert update.variable is not None
            assert update.variable.value == value
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
    await asyncio.wait([waiting])
    assert type(waiting.exception()) is StopAsyncIteration, "closing the watch ends the iteration"


def check_programs(context: SessionContext) -> None:
    """Global programs are separate from those of the session."""
    context.programs["model"] = "of the session"
    name = f"model of {context.session_id}"
    assert context.global_programs.put(name, b"\x00weights", {"kind": "linear"}, ttl=3600)
    assert not context.global_programs.put(name, b"\x00weights")
    assert context.global_programs[name] == b"\x00weights"
    assert name in context.global_programs
    assert name not in context.programs
    assert "model" not in context.global_programs
    del context.global_programs[name]
    assert f"`{name}` not found" in error_message(ProgramNotFoundError, lambda: context.global_programs[name])

    assert context.programs.get("ghost", 7) == 7
    assert context.programs.pop("ghost", 7) == 7
    message = error_message(ProgramNotFoundError, lambda: context.programs.pop("ghost"))
    assert "`ghost` not found" in message
    assert not message.startswith(("'", '"')), message
    assert issubclass(ProgramNotFoundError, KeyError | NotFoundError)


def check_programs_of_an_ended_session(context: SessionContext) -> None:
    """Programs of an ended session raise an error instead of appearing empty."""
    context.programs["model"] = 1
    context.cleanup()
    for action in [
        lambda: context.programs["model"],
        lambda: context.programs.get("model"),
        lambda: context.programs.pop("model", None),
        lambda: context.programs.put("model", 2),
        lambda: list(context.programs),
        lambda: "model" in context.programs,
    ]:
        assert "session" in error_message(NotFoundError, action)
    context.global_programs.get("model")


CHECKS = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_lifecycle,
        check_mapping,
        check_values,
        check_large_lists,
        check_errors,
        check_arguments,
        check_other_arguments,
        check_limits,
        check_conflicts,
        check_batches,
        check_watches,
        check_slow_readers,
        check_sessions,
        check_coroutines,
        check_programs,
        check_programs_of_an_ended_session,
    )
}
