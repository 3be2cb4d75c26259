"""The exceptions that callers raise for failures of tools: their classes, and the exceptions linked to them."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import sys
import traceback
from typing import Any

import pytest

from snakepit_bridge import _remote_errors, errors
from snakepit_bridge._failures import describe, details
from snakepit_bridge._host_errors import create as create_host_error
from snakepit_bridge.errors import RemoteTraceback, ToolError, ToolFailed, VariableNotFoundError


class OutOfStockError(Exception):
    __snakepit_attributes__ = ("item", "code")
    code = 7

    def __init__(self, item: str, left: int) -> None:
        super().__init__(f"no {item}")
        self.item = item
        self.left = left

    class InnerError(Exception):
        pass


class ReadOnlyError(Exception):
    __snakepit_attributes__ = ("message",)

    @property
    def message(self) -> str:
        return "own"


class PickyError(Exception):
    def __new__(cls, first: int, second: int) -> Any:
        return super().__new__(cls, first, second)


class FinalError(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("no subclasses")


class OddGroup(ExceptionGroup[Exception]):
    def __new__(cls, message: str, exceptions: Any, extra: int = 0) -> Any:
        group = super().__new__(cls, message, exceptions)
        group.extra = extra  # type: ignore[attr-defined]
        return group


def failure_of(error: BaseException) -> dict[str, Any]:
    """Return the parts of an exception, as the host sends them."""
    kind, message, trace = describe(error)
    code, parts = details(error)
    return {"type": kind, "message": message, "traceback": trace, "code": code, **json.loads(parts or b"{}")}


def remote(error: BaseException, classes: tuple[type[Exception], ...] | None = None) -> Any:
    """Return the exception that a caller raises for an exception of a tool."""
    try:
        raise error
    except type(error) as raised:
        return _remote_errors.create(failure_of(raised), classes)


def remote_message(error: Any) -> Any:
    return error.failure.message


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        KeyError("tea"),
        FileNotFoundError(2, "No such file", "/a"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        OutOfStockError("tea", 3),
        OutOfStockError.InnerError("inner"),
        ToolError("no", code="c", data=[1]),
        json.JSONDecodeError("bad", "{", 1),
    ],
)
def test_the_error_has_the_class_of_the_tool(error: Exception) -> None:
    found = remote(error)
    assert isinstance(found, type(error))
    assert isinstance(found, ToolFailed)
    assert (str(found), found.may_have_run, found.retry_after) == (str(error), True, None)
    assert type(found).__qualname__ == type(error).__qualname__
    assert shown(found).rstrip().splitlines()[-1] == shown(error).rstrip().splitlines()[-1]
    assert "in remote" in shown(found)
    for copied in (pickle.loads(pickle.dumps(found)), copy.copy(found), copy.deepcopy(found)):  # noqa: S301
        assert type(copied) is type(found)
        assert (str(copied), copied.args, copied.failure.type) == (str(found), found.args, found.failure.type)
        assert "in remote" in shown(copied)


def test_attributes_of_the_own_class_take_precedence() -> None:
    stock = remote(OutOfStockError("tea", 3))
    assert (stock.item, stock.code, stock.failure.code, stock.type) == ("tea", 7, "", f"{__name__}.OutOfStockError")
    assert not hasattr(stock, "left")
    missing = remote(FileNotFoundError(2, "No such file"))
    assert (missing.errno, missing.strerror) == (2, "No such file")
    read_only = remote(ReadOnlyError("no"))
    assert (read_only.message, str(read_only)) == ("own", "no")
    tool_error = remote(ToolError("no", code="not_found", data={"left": 3}))
    assert (tool_error.code, tool_error.data) == ("not_found", {"left": 3})


@pytest.mark.parametrize(
    "error",
    [
        Exception("no"),
        BaseException("no"),
        SystemExit(3),
        KeyboardInterrupt(),
        StopIteration(1),
        VariableNotFoundError("no"),
        errors.HostUnavailableError("no"),
        PickyError(1, 2),
        FinalError("no"),
    ],
)
def test_other_errors_are_plain(error: BaseException) -> None:
    if isinstance(error, PickyError):
        error.args = ("one argument",)
    found = remote(error)
    assert type(found) is ToolFailed
    assert (found.type, found.message) == (describe(error)[0], str(error))


def test_the_class_must_be_imported_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = failure_of(OutOfStockError("tea", 3))
    before = set(sys.modules)
    for kind in ("no_such_module.Error", "wave.Error", f"{__name__}.sys.exit", "sys.modules", "os.path", "..", "print"):
        assert type(_remote_errors.create({**failure, "type": kind})) is ToolFailed, kind
    assert set(sys.modules) == before
    # An alias has another name, which could be that of another class in the worker.
    monkeypatch.setattr(sys.modules[__name__], "AliasError", OutOfStockError, raising=False)
    assert type(_remote_errors.create({**failure, "type": f"{__name__}.AliasError"})) is ToolFailed


def test_a_long_name_costs_no_time() -> None:
    # Looking it up in the modules would take minutes.
    name = "a." * 500_000
    assert type(_remote_errors.create({"type": name, "message": "no"})) is ToolFailed


def test_a_client_can_limit_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(remote(ValueError("no"), ())) is ToolFailed
    assert type(remote(ValueError("no"), (OutOfStockError,))) is ToolFailed
    assert isinstance(remote(OutOfStockError("tea", 3), (OutOfStockError,)), OutOfStockError)
    # The worker has imported the module that is the main program of the client.
    failure = failure_of(OutOfStockError("tea", 3))
    monkeypatch.setattr(OutOfStockError, "__module__", "__main__")
    assert isinstance(_remote_errors.create(failure, (OutOfStockError,)), OutOfStockError)


def chained(*, hide: bool = False) -> Exception:
    def lookup() -> None:
        error = KeyError("tea")
        error.add_note("in shelf 3")
        raise error

    try:
        try:
            lookup()
        except KeyError as error:
            raise OutOfStockError("tea", 3) from error
    except OutOfStockError as error:
        failure = ValueError("no")
        failure.add_note("first")
        failure.add_note("second")
        failure.__context__ = error
        failure.__suppress_context__ = hide
        return failure
    raise AssertionError


def test_causes_contexts_and_notes_are_linked() -> None:
    found = remote(chained())
    assert found.__notes__ == ["first", "second"]
    context = found.__context__
    assert isinstance(context, OutOfStockError)
    assert (context.item, context.__notes__ if hasattr(context, "__notes__") else None) == ("tea", None)
    cause = context.__cause__
    assert isinstance(cause, KeyError)
    assert isinstance(cause, ToolFailed)
    assert (cause.args, cause.__notes__) == (("tea",), ["in shelf 3"])
    assert "in lookup" in cause.traceback
    assert type(cause.__cause__) is RemoteTraceback
    text = shown(found)
    assert text.index("in lookup") < text.index("in remote") < text.rindex("ValueError: no")
    for copied in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):  # noqa: S301
        assert isinstance(copied.__context__.__cause__, KeyError)
        assert copied.__notes__ == found.__notes__
        assert shown(copied) == text
    plain = found.failure
    assert isinstance(plain.__context__, OutOfStockError)
    assert remote(chained(hide=True)).__context__ is None


def test_groups_are_exception_groups() -> None:
    group = ExceptionGroup("two", [OutOfStockError("tea", 3), ExceptionGroup("in", [KeyError("a"), SystemError()])])
    found: Any
    for found in (remote(group), pickle.loads(pickle.dumps(remote(group))), remote(group, (KeyError,))):  # noqa: S301
        assert isinstance(found, ExceptionGroup)
        assert isinstance(found, ToolFailed)
        assert (found.message, found.exceptions[1].message) == ("two", "in")
        assert [remote_message(leaf) for leaf in found.exceptions] == ["no tea", "in (2 sub-exceptions)"]
        matched, rest = found.split(KeyError)
        assert matched is not None
        assert rest is not None
    assert isinstance(remote(group).exceptions[0], OutOfStockError)
    assert type(remote(group, (KeyError,)).exceptions[0]) is ToolFailed
    mixed = remote(BaseExceptionGroup("base", [KeyboardInterrupt(), ValueError("no")]))
    assert isinstance(mixed, ExceptionGroup)
    assert [type(leaf).__name__ for leaf in mixed.exceptions] == ["ToolFailed", "ValueError"]
    # `OddGroup` has a `__new__`, which runs only if the program lists the class.
    for classes, kind in ((None, ExceptionGroup), ((OddGroup, ValueError), OddGroup)):
        odd = remote(OddGroup("odd", [ValueError("no")], 3), classes)
        assert type(odd).__mro__[1] is kind
        assert str(odd.exceptions[0]) == "no"


def test_long_and_circular_chains_are_bounded() -> None:
    circular, other = ValueError("a"), ValueError("b")
    circular.__cause__, other.__cause__ = other, circular
    found = remote(circular)
    assert str(found.__cause__) == "b"
    assert type(found.__cause__.__cause__) is RemoteTraceback

    last: Exception = ValueError("root")
    for _ in range(200):
        error = ValueError("step")
        error.__cause__ = last
        last = error
    assert failure_of(last).get("cause", {}).get("omitted", ["cause"])
    assert len(json.dumps(failure_of(last))) < 300_000
    wide = ExceptionGroup("wide", [ValueError(number) for number in range(1000)])
    assert failure_of(wide)["omitted"] == ["exceptions"]
    large = ValueError("no")
    large.__cause__ = ValueError("x" * 200_000, "y" * 200_000)
    assert len(failure_of(large)["cause"]["message"]) == 16 * 1024
    assert failure_of(large)["cause"]["omitted"] == ["args"]


def test_a_chain_that_is_too_deep_says_so_on_every_host() -> None:
    last: Exception = ValueError("root")
    for _ in range(30):
        error = ValueError("step")
        error.__cause__ = last
        last = error
    for found in (remote(last), remote(remote(last)), remote(remote(last, ()), ())):
        depth, deepest = 0, found
        while isinstance(deepest.__cause__, ToolFailed):
            depth, deepest = depth + 1, deepest.__cause__
        assert (depth, deepest.failure.omitted) == (24, ("cause",))


def test_failures_pass_through_a_tool() -> None:
    passed = remote(remote(chained()))
    assert isinstance(passed, ValueError)
    assert isinstance(passed.__context__, OutOfStockError)
    assert isinstance(passed.__context__.__cause__, KeyError)
    assert passed.__notes__ == ["first", "second"]
    assert "in lookup" in shown(passed)
    tool_error = remote(remote(ToolError("no", code="not_found", data={"left": 3})))
    assert (type(tool_error).__name__, tool_error.code, tool_error.data) == ("ToolError", "not_found", {"left": 3})
    # A tool without the class passes the error on unchanged.
    passed_on = remote(remote(ToolError("no", code="c", data=[1]), ()))
    assert isinstance(passed_on, ToolError)
    assert (str(passed_on), passed_on.code, passed_on.data) == ("no", "c", [1])


def test_a_host_tool_keeps_its_code_and_data_through_a_tool() -> None:
    for python_type, kind in (("KeyError", KeyError), ("", ToolFailed)):
        error = create_host_error("E: no", "find", "no", "E", "not_found", {"left": 3}, python_type)
        found: Any = remote(error)
        assert isinstance(found, kind)
        assert isinstance(found, ToolFailed)
        assert (found.failure.code, found.failure.data) == ("not_found", {"left": 3})


def test_integers_beyond_64_bits_have_no_json_form() -> None:
    limits = [2**64 - 1, -(2**63)]
    assert failure_of(ValueError(*limits, 2**64, -(2**63) - 1, [1, 2**70], {"a": -(2**70)}))["args"] == limits
    assert failure_of(ValueError({2**70: 1}, "9" * 40, 1e300, 12))["args"] == [{str(2**70): 1}, "9" * 40, 1e300, 12]


@pytest.mark.parametrize("name", ["cause", "context"])
def test_a_long_chain_is_created_once(name: str) -> None:
    depth = 60
    failure: dict[str, Any] = {"type": "RuntimeError", "message": "0", "traceback": "the traceback"}
    for level in range(1, depth):
        failure = {"type": "RuntimeError", "message": str(level), "traceback": "the traceback", name: failure}
    error: BaseException | None = _remote_errors.create(failure)
    error = pickle.loads(pickle.dumps(error))  # noqa: S301
    messages = []
    while error is not None and not isinstance(error, errors.RemoteTraceback):
        assert isinstance(error, RuntimeError)
        messages.append(str(error))
        error = error.__cause__ or error.__context__
    assert messages == [str(level) for level in reversed(range(depth))]
    assert isinstance(error, errors.RemoteTraceback)


def test_private_attributes_are_not_set() -> None:
    failure = {"type": "ValueError", "message": "no", "attributes": {"item": "tea", "_failure": "x", "__dict__": {}}}
    error: Any = _remote_errors.create(failure)
    assert (str(error), error.item, error.failure.message) == ("no", "tea", "no")


RUN: list[str] = []


class _Meta(type):
    def __subclasscheck__(cls, other: type) -> bool:
        RUN.append("__subclasscheck__")
        return super().__subclasscheck__(other)

    def __getattribute__(cls, name: str) -> Any:
        RUN.append(f"metaclass {name}")
        return super().__getattribute__(name)


class MetaError(KeyError, metaclass=_Meta):
    pass


class NewError(LookupError):
    def __new__(cls, *args: Any) -> Any:
        RUN.append("__new__")
        return super().__new__(cls, *args)


class InitSubclassError(LookupError):
    def __init_subclass__(cls) -> None:
        RUN.append("__init_subclass__")


class SetattrError(LookupError):
    def __setattr__(self, name: str, value: Any) -> None:
        RUN.append(f"set {name}")

    def __getattribute__(self, name: str) -> Any:
        RUN.append(f"get {name}")
        return super().__getattribute__(name)


class DelError(LookupError):
    def __del__(self) -> None:
        RUN.append("__del__")


class _Setter:
    def __get__(self, instance: Any, owner: Any) -> str:
        RUN.append("__get__")
        return "own"

    def __set__(self, instance: Any, value: Any) -> None:
        RUN.append("__set__")


class SetterError(LookupError):
    item = _Setter()
    args = _Setter()  # type: ignore[assignment]
    __cause__ = _Setter()  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (MetaError, KeyError),
        (NewError, LookupError),
        (InitSubclassError, LookupError),
        (SetattrError, LookupError),
        (DelError, LookupError),
        (SetterError, SetterError),
    ],
)
def test_a_failure_runs_no_code_of_the_classes_of_the_program(kind: Any, base: type[Exception]) -> None:
    name = f"{__name__}.{type.__dict__['__qualname__'].__get__(kind)}"
    cause = {"type": name, "message": "cause"}
    failure = {"type": name, "message": "no", "args": ["no"], "attributes": {"item": "tea"}, "cause": cause}
    RUN.clear()
    error: Any = _remote_errors.create(failure)
    assert RUN == []
    assert (type(error).__mro__[1], error.failure.message) == (base, "no")
    assert error.failure.attributes == {"item": "tea"}
    del error


def test_a_listed_class_may_run_its_code() -> None:
    RUN.clear()
    error = _remote_errors.create({"type": f"{__name__}.NewError", "message": "no"}, (NewError,))
    assert isinstance(error, NewError)
    assert RUN == ["__new__"]


def test_a_failure_does_not_load_a_lazy_module(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazy_errors.py").write_text("class LazyError(Exception): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = importlib.util.find_spec("lazy_errors")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lazy_errors", module)
    spec.loader.exec_module(module)
    error = _remote_errors.create({"type": "lazy_errors.LazyError", "message": "no"})
    assert type(error) is ToolFailed
    assert "LazyError" not in object.__getattribute__(module, "__dict__")
    # The program has loaded it.
    assert module.LazyError.__name__ == "LazyError"
    assert isinstance(_remote_errors.create({"type": "lazy_errors.LazyError", "message": "no"}), module.LazyError)
