"""The exceptions of the package: pickling, copying, other processes, and the traceback of tools."""

import contextlib
import copy
import importlib
import inspect
import pickle
import pkgutil
import re
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

import snakepit_bridge
from snakepit_bridge import BaseAdapter, errors, tool
from snakepit_bridge._failures import describe
from snakepit_bridge.client import Client
from snakepit_bridge.testing import ToolFailed, call_tool

#: Arguments for parameters with these annotations.
_ARGUMENTS: dict[str, Any] = {
    "str": "text",
    "int": 7,
    "dict[str, SnakepitError]": {"n": errors.VersionConflictError("n", 1, 2)},
    "dict[str, int]": {"n": 3},
    "Any": {"left": [3]},
    "Iterable[Any]": ("tea", 3),
    "Iterable[str]": ("args",),
    "Mapping[str, Any] | None": {"item": "tea"},
    "tuple[_ExceptionClass, ...] | None": (ValueError,),
}


def modules() -> Iterator[Any]:
    for module in pkgutil.walk_packages(snakepit_bridge.__path__, "snakepit_bridge."):
        # The showcase requires packages that may not be installed.
        with contextlib.suppress(ImportError):
            yield importlib.import_module(module.name)


def exceptions() -> list[type[BaseException]]:
    found = {
        kind
        for module in modules()
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, BaseException) and kind.__module__.startswith("snakepit_bridge")
    }
    return sorted(found, key=lambda kind: kind.__name__)


def an_instance(kind: type[BaseException]) -> BaseException:
    """Creates an exception with all its arguments."""
    if kind.__init__ in (errors.SnakepitError.__init__, Exception.__init__, BaseException.__init__):
        error = kind("text")
    else:
        parameters = inspect.signature(kind).parameters.values()
        by_name = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        by_position = [parameter for parameter in parameters if parameter not in by_name]
        error = kind(
            *(_ARGUMENTS[parameter.annotation] for parameter in by_position),
            **{parameter.name: _ARGUMENTS[parameter.annotation] for parameter in by_name},
        )
    vars(error)["__notes__"] = ["a note"]
    if isinstance(error, errors.SnakepitError):
        error.retry_after = 1.5
        error.may_have_run = not error.may_have_run
    return error


def parts(error: BaseException) -> tuple[Any, ...]:
    """Returns the parts that a copy must preserve."""
    state = {
        key: {name: parts(each) for name, each in value.items()} if key == "errors" else value
        for key, value in vars(error).items()
    }
    return type(error), error.args, str(error), state, str(error.__cause__)


def identity(error: BaseException) -> BaseException:
    return error


def raise_it(error: BaseException) -> None:
    raise error


def test_there_are_exceptions_to_test() -> None:
    assert len(exceptions()) > 20
    assert set(map(type, _ARGUMENTS.values())) == {str, int, dict, tuple}


@pytest.mark.parametrize("kind", exceptions())
def test_every_exception_survives_copies(kind: type[BaseException]) -> None:
    error = an_instance(kind)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert parts(pickle.loads(pickle.dumps(error, protocol))) == parts(error)  # noqa: S301
    assert parts(copy.copy(error)) == parts(error)
    assert parts(copy.deepcopy(error)) == parts(error)


def test_an_exception_of_a_subclass_survives_copies() -> None:
    error = ApplicationError(3, hint="retry")
    assert parts(pickle.loads(pickle.dumps(error))) == parts(error)  # noqa: S301
    assert parts(copy.copy(error)) == parts(error)


class ApplicationError(errors.HostUnavailableError):
    def __init__(self, number: int, *, hint: str) -> None:
        super().__init__(f"number {number}")
        self.hint = hint


def test_exceptions_cross_a_pool_of_processes() -> None:
    samples = [an_instance(kind) for kind in exceptions() if issubclass(kind, Exception)]
    with ProcessPoolExecutor(1) as pool:
        for error in samples:
            assert parts(pool.submit(identity, error).result()) == parts(error)
            with pytest.raises(type(error)) as raised:
                pool.submit(raise_it, error).result()
            assert raised.value.args == error.args
        assert pool.submit(abs, -1).result() == 1


def test_existing_base_classes_catch_newer_exceptions() -> None:
    unavailable = errors.HostUnavailableError
    for new in (errors.OverloadedError, errors.WorkerLostError, errors.ShuttingDownError, errors.ConnectTimeoutError):
        assert issubclass(new, unavailable)
        assert issubclass(new, ConnectionError)
    assert issubclass(errors.ConnectTimeoutError, errors.DeadlineExceededError)
    assert issubclass(errors.ClientClosedError, RuntimeError)
    assert issubclass(errors.AccessDeniedError, PermissionError)
    for kind in exceptions():
        if issubclass(kind, errors.SnakepitError):
            assert isinstance(kind.may_have_run, bool)
            assert kind.retry_after is None
            if kind.__module__ == "snakepit_bridge.errors":
                assert getattr(snakepit_bridge, kind.__name__) is kind


def test_retry_attributes_are_keyword_arguments() -> None:
    error = errors.OverloadedError("busy", retry_after=0.5)
    assert (error.args, error.retry_after, error.may_have_run) == (("busy",), 0.5, False)
    assert errors.HostUnavailableError("lost", may_have_run=False).may_have_run is False


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ftp://x",
        "https://localhost:1",
        "localhost",
        "localhost:70000",
        "ho<st:1",
        "unix:",
        "http://localhost:1/api",
    ],
)
def test_a_malformed_address_is_an_invalid_argument(address: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=re.escape(f"`{address}`")) as raised:
        Client(address)
    assert raised.value.may_have_run is False


@pytest.mark.parametrize(
    ("greeting", "name"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a server of HTTP/1 (`HTTP/1.1 400 Bad Request`)"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "it speaks TLS; this client does not support TLS"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "it began with `SSH-2.0-OpenSSH_9.6`"),
    ],
)
def test_the_error_names_a_server_that_is_no_host(greeting: bytes, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    with peer:
                        peer.recv(1024)
                        peer.sendall(greeting)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(errors.HostUnavailableError, match=re.escape(name)) as raised:
            Client(f"127.0.0.1:{server.getsockname()[1]}")
        assert raised.value.may_have_run is False
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


class _BrokenModule(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no module")


def test_a_class_whose_module_raises_has_a_name() -> None:
    kind = _BrokenModule("OddError", (ValueError,), {})
    assert describe(kind("no"))[0] == "<unknown>.OddError"


def test_an_uncaught_failure_shows_the_traceback_of_the_tool() -> None:
    error = ToolFailed("ValueError", "no", 'Traceback:\n  File "shop.py", line 3, in price\nValueError: no\n')
    for same in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        shown = "".join(traceback.format_exception(same))
        assert 'File "shop.py", line 3, in price' in shown
        assert shown.index("shop.py") < shown.rindex("ToolFailed: ValueError: no")
    assert ToolFailed("ValueError", "no").__cause__ is None
    assert str(ToolFailed("ValueError", "")) == "ValueError"
    assert str(ToolFailed("", "no")) == "no"


def test_pytest_shows_the_traceback_of_the_tool(tmp_path: Any) -> None:
    test = tmp_path / "test_shop.py"
    test.write_text(
        "from snakepit_bridge import ToolFailed\n"
        "def test_price():\n"
        "    raise ToolFailed('ValueError', 'no', 'File \"shop.py\", line 3, in price')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    output = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False).stdout  # noqa: S603
    assert 'File "shop.py", line 3, in price' in output


class Unprintable(BaseAdapter):
    @tool
    def surrogate(self) -> None:
        """Raises an error with a lone surrogate, as in undecodable file names."""
        raise ValueError("caf\udce9")

    @tool
    def named(self) -> None:
        """Raises an error whose type has a lone surrogate in its name."""
        kind = type("Cafe", (ValueError,), {})
        kind.__qualname__ = "Caf\udce9"
        raise kind("no")

    @tool
    def caused(self) -> None:
        """Raises an error whose cause has a lone surrogate."""
        try:
            self.surrogate()
        except ValueError as error:
            raise RuntimeError("no") from error

    @tool
    def noted(self) -> None:
        """Raises an error whose note has a lone surrogate."""
        error = ValueError("no")
        vars(error)["__notes__"] = ["caf\udce9"]
        raise error


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("surrogate", "ValueError", "caf\\udce9"),
        ("named", "test_errors.Caf\\udce9", "no"),
        ("caused", "RuntimeError", "no"),
        ("noted", "ValueError", "no"),
    ],
)
def test_text_that_is_not_utf_8_is_escaped(name: str, kind: str, message: str) -> None:
    with pytest.raises(ToolFailed) as raised:
        call_tool(Unprintable, name)
    error = raised.value
    assert (error.type, error.message) == (kind, message)
    assert str(error.failure) == f"{kind}: {message}"
    assert "caf\\udce9" in error.traceback.lower()
    assert f"in {name}" in error.traceback


def test_an_exception_that_cannot_be_formatted_keeps_its_frames() -> None:
    class OddError(Exception):
        @property
        def __notes__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("no notes")

    try:
        raise OddError("odd")
    except OddError as error:
        kind, message, shown = describe(error)
    assert kind.endswith("OddError")
    assert message == "odd"
    assert "test_errors.py" in shown
