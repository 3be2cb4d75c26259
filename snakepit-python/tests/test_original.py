"""The API of the original Snakepit. tests/tests/original_adapters.rs serves the adapters."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import pickle
import subprocess
import sys
import time
import warnings
from collections import namedtuple
from collections.abc import AsyncIterator, Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

import snakepit_bridge
from first_generation.delegating import DelegatingAdapter
from first_generation.plain import PlainAdapter
from first_generation.registering import RegisteringAdapter
from first_generation.threaded import ThreadedAdapter
from measured import summarize
from snakepit_bridge import BaseAdapter, SessionContext, _markers, _native, telemetry, tool
from snakepit_bridge.base_adapter import ToolMetadata
from snakepit_bridge.base_adapter_threaded import (
    ThreadSafeAdapter,
    require_thread_safe,
    thread_safe_method,
    validate_thread_safety,
)
from snakepit_bridge.errors import UnsupportedError
from snakepit_bridge.heartbeat import HeartbeatClient, HeartbeatConfig
from snakepit_bridge.logging_config import configure_logging, get_logger
from snakepit_bridge.serialization import GracefulJSONEncoder, TypeSerializer
from snakepit_bridge.telemetry.backends import TelemetryBackend
from snakepit_bridge.telemetry.backends.grpc import GrpcBackend
from snakepit_bridge.telemetry.stream import TelemetryStream
from snakepit_bridge.testing import ToolTester, call_tool
from snakepit_bridge.zero_copy import ZeroCopyRef
from stock import StockAdapter


class Recorder(TelemetryBackend):
    """Keeps all events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any], dict[str, Any] | None, str | None]] = []

    def emit(self, event_name: str, measurements: Any, metadata: Any = None, correlation_id: str | None = None) -> None:
        self.events.append((event_name, measurements, metadata, correlation_id))


@pytest.fixture
def recorder() -> Any:
    before, recorder = telemetry.get_backend(), Recorder()
    telemetry.set_backend(recorder)
    yield recorder
    telemetry.set_backend(before)


def test_the_guide_adapters_answer(recorder: Recorder) -> None:
    with ToolTester(StockAdapter, session_id="s") as tester:
        assert tester.call("items") == ["tea"]
        assert tester.call("count", item="tea") == {"item": "tea", "count": 3, "session": "s"}
    assert summarize("a cup of tea") == "a cup of"
    assert [event[0] for event in recorder.events] == ["text.summarize.start", "text.size", "text.summarize.stop"]
    assert recorder.events[1][1] == {"words": 4, "bytes": 12}


@pytest.mark.parametrize(("guide", "adapter"), [("adapters", "stock"), ("telemetry", "measured")])
def test_the_guides_show_the_tested_code(guide: str, adapter: str) -> None:
    root = Path(__file__).parents[2]
    code = (root / "tests" / "adapters" / f"{adapter}.py").read_text()
    assert f"```python\n{code}```" in (root / "docs" / f"{guide}.md").read_text()


@pytest.mark.parametrize("adapter", [DelegatingAdapter, PlainAdapter, RegisteringAdapter, ThreadedAdapter])
def test_adapters_of_each_style_can_be_tested(adapter: type) -> None:
    calls: dict[type, tuple[str, dict[str, Any]]] = {
        DelegatingAdapter: ("ping", {}),
        PlainAdapter: ("anything", {}),
        RegisteringAdapter: ("get", {}),
        ThreadedAdapter: ("count", {"text": "a b"}),
    }
    name, arguments = calls[adapter]
    with ToolTester(adapter) as tester:
        if adapter is RegisteringAdapter:
            assert [tool.name for tool in RegisteringAdapter().get_tools()] == ["read", "tools_by_stub"]
        else:
            assert tester.call(name, arguments)["session"] == "test" or name == "anything"


def test_names_of_the_package_are_imported_at_their_first_use() -> None:
    code = (
        "import sys, snakepit_bridge\n"
        "lazy = {'logging', 'dataclasses', 'inspect', 'json', 'threading', 'snakepit_bridge.telemetry'}\n"
        "print(sorted(lazy & sys.modules.keys()))\n"
        "from snakepit_bridge import HeartbeatClient, HeartbeatConfig, ZeroCopyRef, configure_logging, get_logger\n"
        "from snakepit_bridge import telemetry\n"
        "print('google' in sys.modules, 'grpc' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)  # noqa: S603
    assert printed.stdout.splitlines() == ["[]", "False False"]
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        snakepit_bridge.Nothing  # noqa: B018


def test_the_decorator_leaves_metadata() -> None:
    @tool("Search", True, ["rate"])
    def search(query: str) -> str:
        """Not used."""
        return query

    @tool
    def plain() -> None:
        """Documented."""

    metadata = search._tool_metadata  # type: ignore[attr-defined]
    assert metadata == ToolMetadata("Search", True, required_variables=["rate"])
    assert dataclasses.asdict(metadata)["required_variables"] == ["rate"]
    assert [field.name for field in dataclasses.fields(ToolMetadata)] == [  # type: ignore[arg-type]
        "description",
        "supports_streaming",
        "parameters",
        "required_variables",
    ]
    assert plain._tool_metadata.description == "Documented."  # type: ignore[attr-defined]
    assert search("x") == "x"
    assert "description='Search'" in repr(metadata)


def test_the_base_class_has_the_methods_of_the_original() -> None:
    adapter = DelegatingAdapter()
    assert adapter.session_id is None
    assert adapter._session_context is None
    adapter.set_session_context(SessionContext(SimpleNamespace(), "s", {"a": "b"}))
    assert adapter.session_id == "s"
    assert adapter.session_context.request_metadata == {"a": "b"}
    with pytest.raises(UnsupportedError, match="a `SessionContext` for a stub has only the host tools"):
        adapter.session_context["rate"]
    assert adapter.call_tool("again", message="x") == {"again": "x"}
    assert adapter.call_tool(tool_name="again", message="x") == {"again": "x"}
    with pytest.raises(AttributeError, match="tool `nothing` not found: `DelegatingAdapter` has no method"):
        adapter.call_tool("nothing")
    with pytest.raises(TypeError, match="needs the name of a tool"):
        adapter.call_tool(message="x")
    with pytest.raises(TypeError, match="`handlers` of `DelegatingAdapter` cannot be called"):
        adapter.call_tool("handlers")
    registered = adapter.register_with_session("s", None)
    assert asyncio.run(adapter.register_with_session_async("s", None)) == registered
    tools = {tool.name: tool for tool in adapter.get_tools()}
    assert tools["streamed"].supports_streaming
    assert not tools["echo"].supports_streaming
    assert tools["call_host"].metadata["required_variables"] == "enabled"
    count = tools["streamed"].parameters[0]
    assert (count.name, count.type, count.required) == ("count", "integer", False)
    assert json.loads(count.validation_json) == {"default": 2}

    class Own(BaseAdapter):
        def __init__(self) -> None:
            self.session_id = "mine"

    assert Own().session_id == "mine"


def test_execute_tool_of_any_form_is_called() -> None:
    class ByKeyword:
        def execute_tool(self, *, context: Any, tool_name: str, arguments: dict[str, Any]) -> Any:
            return [tool_name, arguments, context.session_id]

    class ByPosition:
        def execute_tool(self, name: str, values: dict[str, Any], ctx: Any) -> Any:
            return [name, values, ctx.session_id]

    class Listed:
        dynamic_tools = ("listed",)

        @tool
        def direct(self, x: int) -> int:
            return x

        def execute_tool(self, tool_name: str, arguments: dict[str, Any], context: Any) -> Any:
            return [tool_name, arguments, context.session_id]

    class Unusual(BaseAdapter):
        def execute_tool(self, tool_name: str, arguments: dict[str, Any], context: Any) -> Any:
            return self.call_tool(tool_name, **arguments)

        @tool
        def any_signature(self, x: Missing, /, *more: int) -> Missing:  # type: ignore[name-defined]  # noqa: F821
            return x

    for adapter in (ByKeyword, ByPosition):
        assert call_tool(adapter, "any", x=1, session_id="s") == ["any", {"x": 1}, "s"]
    assert call_tool(Listed, "listed") == ["listed", {}, "test"]
    assert call_tool(Listed, "direct", x=3) == 3
    assert [parameter.name for parameter in Unusual().get_tools()[0].parameters] == ["x"]


def test_thread_safe_adapters_share_the_parts_of_their_class() -> None:
    class Counting(ThreadSafeAdapter):
        @thread_safe_method
        def count(self) -> int:
            return int(self.get_stats()["tracker"]["total_active_requests"])

        @thread_safe_method
        def fail(self) -> None:
            raise ValueError("no")

    first, second = Counting(), Counting()
    assert first.count() == 1
    with pytest.raises(ValueError, match="no"):
        second.fail()
    with second.track_request("x") as number:
        assert number == 3
    assert second.get_stats() == {
        "adapter_class": "Counting",
        "thread_safe": True,
        "tracker": {"total_requests": 3, "active_threads": 0, "total_active_requests": 0, "threads_seen": 1},
    }
    first.set_thread_local("key", 1)
    assert second.get_thread_local("key") == 1
    second.clear_thread_local("key")
    assert first.get_thread_local("key", 0) == 0
    with first.acquire_lock(), second.acquire_lock():
        pass
    assert validate_thread_safety(Counting)
    assert not validate_thread_safety(BaseAdapter)
    assert Counting.count.__thread_safe__  # type: ignore[attr-defined]

    @require_thread_safe
    def run(adapter: object) -> str:
        return "ran"

    assert run(first) == "ran"
    with pytest.raises(ValueError, match="`BaseAdapter` is not declared safe"):
        run(BaseAdapter())
    assert thread_safe_method(lambda self: self)(1) == 1


def test_spans_and_correlation_ids(recorder: Recorder) -> None:
    token = telemetry.set_correlation_id("outer")
    with telemetry.span("work", {"a": 1}), pytest.raises(KeyError), telemetry.span("inner", correlation_id="x"):
        raise KeyError("no")
    names = [(event[0], event[3]) for event in recorder.events]
    assert names == [("work.start", "outer"), ("inner.start", "x"), ("inner.exception", "x"), ("work.stop", "outer")]
    assert recorder.events[2][2] == {"error_type": "KeyError", "error_message": "'no'"}
    assert recorder.events[3][1]["duration"] > 0
    assert telemetry.outgoing_metadata([("a", "b")]) == [("a", "b"), (telemetry.CORRELATION_HEADER, "outer")]
    telemetry.reset_correlation_id(token)
    assert telemetry.get_correlation_id("none") == "none"
    with telemetry.otel_span("s", context_metadata=[("X-Snakepit-Correlation-Id", "given")], attributes={"a": 1}):
        assert telemetry.get_correlation_id() == "given"
        record: Any = logging.LogRecord("n", 20, "p", 1, "m", None, None)
        assert telemetry.correlation_filter().filter(record)
        assert record.correlation_id == "given"
    assert telemetry.get_correlation_id() is None
    assert len(telemetry.new_correlation_id()) == 32

    @telemetry.span("decorated")
    def decorated() -> int:
        return 3

    assert decorated() == 3
    assert recorder.events[-1][0] == "decorated.stop"
    telemetry.set_backend(None)
    assert not telemetry.is_enabled()
    telemetry.emit("dropped", {})
    stream = TelemetryStream(max_buffer=8)
    backend = GrpcBackend(stream)
    backend.emit("outside of a worker", {"x": 1}, {"y": 2}, "id")
    backend.close()
    assert stream.dropped_count == 0


def test_the_span_of_a_decorated_function_lasts_until_its_end(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    @telemetry.span("coroutine")
    async def coroutine() -> int:
        telemetry.emit("inside", {})
        raise KeyError

    @telemetry.span("generator")
    def generator() -> Iterator[int]:
        telemetry.emit("inside", {})
        yield 1

    @telemetry.span("stream")
    async def stream() -> AsyncIterator[int]:
        telemetry.emit("inside", {})
        yield 1

    async def run() -> list[int]:
        with pytest.raises(KeyError):
            await coroutine()
        return [item async for item in stream()] + list(generator())

    # The system clock may go back.
    seconds = iter(range(10, 0, -1))
    monkeypatch.setattr(time, "time_ns", lambda: next(seconds) * 10**9)
    assert asyncio.run(run()) == [1, 1]
    assert [event[0] for event in recorder.events] == [
        *("coroutine.start", "inside", "coroutine.exception"),
        *("stream.start", "inside", "stream.stop"),
        *("generator.start", "inside", "generator.stop"),
    ]
    assert all(event[1]["duration"] >= 0 for event in recorder.events[2::3])


def test_events_of_the_host_are_dropped_with_a_warning() -> None:
    names = [f"tool.execution.{part}" for part in ("start", "stop", "exception")]
    for name in (*names, "telemetry.events.lost"):
        with pytest.warns(RuntimeWarning, match=f"the event `{name}` is dropped, because only the host emits it"):
            _native.emit_event(name, {}, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _native.emit_event("tool.execution.other", {}, None, None)


def test_tracing_marks_log_records() -> None:
    code = (
        "import logging\nfrom snakepit_bridge import telemetry\ntelemetry.setup_tracing()\n"
        "telemetry.set_correlation_id('id')\n"
        "record = logging.getLogger('x').makeRecord('x', 20, 'f', 1, 'm', (), None)\n"
        "print(record.correlation_id, telemetry.get_tracer())"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)  # noqa: S603
    assert printed.stdout.startswith("id ")


def test_logging_has_the_names_and_levels_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["shop", "snakepit.x", "snakepit_bridge.adapters.x"]
    assert [get_logger(name).name for name in names] == ["snakepit.shop", "snakepit.x", "snakepit.bridge.adapters.x"]
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        for name, expected in [("debug", logging.DEBUG), ("bad", logging.ERROR), ("none", logging.CRITICAL + 1)]:
            monkeypatch.setenv("SNAKEPIT_LOG_LEVEL", name)
            configure_logging(force=True)
            assert root.level == expected
        assert root.manager.disable == logging.CRITICAL
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:] = handlers
        root.setLevel(level)


def test_heartbeats_are_accepted_without_effect() -> None:
    config = HeartbeatConfig.from_mapping(
        {"intervalMs": "500", "timeout_ms": "no", "enabled": "off", "dependent": 0, "unknown": 1},
        defaults=HeartbeatConfig(timeout_ms=7),
    )
    assert config == HeartbeatConfig(enabled=False, interval_ms=500, timeout_ms=7, dependent=False)
    assert HeartbeatConfig.from_mapping(None) == HeartbeatConfig()
    client = HeartbeatClient(None, "s", config)
    assert client.start() is False
    asyncio.run(client.stop())
    assert (client.config, client.status()["running"], client.status()["session_id"]) == (config, False, "s")


def test_references_are_opaque() -> None:
    payload = {"kind": "dlpack", "ref": 3, "metadata": {"a": 1}}
    reference = ZeroCopyRef.from_payload(payload)
    assert (reference.kind, reference.device, reference.metadata) == ("dlpack", None, {"a": 1})
    assert reference.to_payload() == payload
    assert "kind='dlpack'" in repr(reference)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1.5, "float"), (float("inf"), "float"), (3, "integer"), ("x", "string"), (True, "boolean"), ([1], "list")],
)
def test_values_survive_the_serializer(value: Any, kind: str) -> None:
    message, buffer = TypeSerializer.encode_any(value, kind)
    assert message.type_url == f"type.googleapis.com/snakepit.{kind}"
    assert TypeSerializer.decode_any(message, buffer) == value


def test_arrays_and_references_survive_the_serializer() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    decoded = TypeSerializer.decode_any(*TypeSerializer.encode_any(array, "tensor"))
    np.testing.assert_array_equal(decoded, array)
    tensor = {"shape": [2], "data": [1.0, 2.0]}
    np.testing.assert_array_equal(TypeSerializer.decode_any(*TypeSerializer.encode_any(tensor, "tensor")), [1, 2])
    reference = ZeroCopyRef({"__snakepit_zero_copy__": True, "kind": "arrow"})
    decoded = TypeSerializer.decode_any(*TypeSerializer.encode_any(reference, "map"))
    assert isinstance(decoded, ZeroCopyRef)
    for wrong, kind in [("x", "float"), (1.5, "integer"), (1, "boolean")]:
        with pytest.raises(ValueError, match="expected a"):
            TypeSerializer.encode_any(wrong, kind)


@pytest.mark.parametrize(
    "numbers", [[1.5, 2.0, 3.0, 4.0], [[1.5, 2.0], [3.0, 4.0]], np.array([[1.5, 2.0], [3.0, 4.0]])]
)
def test_pickled_tensors_are_read_if_pickles_are_allowed(numbers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The form of large tensors from workers of the original.
    metadata = {"type": "tensor", "shape": [2, 2], "dtype": "float32", "binary_format": "pickle"}
    message = AnyMessage(type_url="type.googleapis.com/snakepit.tensor.binary", value=json.dumps(metadata).encode())
    with pytest.raises(ValueError, match="SNAKEPIT_ALLOW_PICKLE"):
        TypeSerializer.decode_any(message, pickle.dumps(numbers))
    monkeypatch.setenv("SNAKEPIT_ALLOW_PICKLE", "1")
    decoded = TypeSerializer.decode_any(message, pickle.dumps(numbers))
    assert isinstance(decoded, np.ndarray)
    np.testing.assert_array_equal(decoded, [[1.5, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match="reshape"):
        TypeSerializer.decode_any(message, pickle.dumps([1.0]))


def test_markers_replace_only_those_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opaque:
        pass

    class Item:
        def to_dict(self) -> dict[str, int]:
            return {"a": 1}

    for name, value in (("has_original_forms", True), ("is_set", False), ("detail", None)):
        monkeypatch.setattr(_markers._Settings, name, value)
    name = f"{__name__}.Opaque"
    assert _markers.marker(Item()) == {"a": 1}
    assert _markers.marker(Opaque()) == {"__snakepit_unserializable__": True, "__type__": name}
    _markers.unserializable_markers("none")
    assert _markers.marker(Item()) == {"a": 1}
    assert _markers.marker(Opaque()) == {"__snakepit_unserializable__": True}
    _markers.unserializable_markers(None)
    assert _markers.marker(Item()) == {"a": 1}
    assert _markers.marker(Opaque()) is NotImplemented


@pytest.mark.parametrize(
    ("value", "kind", "constraints", "problem"),
    [
        (-1, "float", {"min": 0}, "below minimum 0"),
        (11, "integer", {"max": 10}, "above maximum 10"),
        ("a", "string", {"min_length": 3}, "shorter than 3 characters"),
        ("abc", "string", {"max_length": 2}, "longer than 2 characters"),
        ("c", "choice", {"choices": ["a", "b"]}, "must be one of 'a', 'b'"),
        ("os", "module", {"allowed_modules": ["math"]}, "must be one of 'math'"),
        ([1, 2], "embedding", {"dimensions": 3}, "2 dimensions instead of 3"),
        (np.zeros((2, 2)), "tensor", {"shape": [2, 3]}, r"shape \[2, 2\] instead of \[2, 3\]"),
    ],
)
def test_constraints_are_checked(value: Any, kind: str, constraints: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TypeSerializer.validate_constraints(value, kind, constraints)
    TypeSerializer.validate_constraints(value, kind, {})


def test_the_encoder_accepts_any_value(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opaque:
        def __repr__(self) -> str:
            return "Opaque(password='hunter2', key=sk-abcdefghijkl)"

    pair = namedtuple("pair", "a b")
    model = SimpleNamespace(model_dump=lambda: {"a": 1})
    values = {"date": date(2026, 1, 2), "array": np.arange(2), "model": model, "pair": pair(1, 2)}
    encoded = json.loads(json.dumps(values, cls=GracefulJSONEncoder))
    assert encoded == {"date": "2026-01-02", "array": [0, 1], "model": {"a": 1}, "pair": [1, 2]}

    def marker(value: Any = None) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(Opaque() if value is None else value, cls=GracefulJSONEncoder))
        return found

    name = f"{__name__}.Opaque"
    assert marker() == {"__snakepit_unserializable__": True, "__type__": name}
    assert marker(Opaque)["__type__"] == "builtins.type"
    monkeypatch.setenv("SNAKEPIT_UNSERIALIZABLE_DETAIL", "type")
    assert marker()["__repr__"] == f"<unserializable {name}>"
    monkeypatch.setenv("SNAKEPIT_UNSERIALIZABLE_DETAIL", "repr_truncated")
    monkeypatch.setenv("SNAKEPIT_UNSERIALIZABLE_REPR_MAXLEN", "6")
    assert marker()["__repr__"] == "Opaque"
    monkeypatch.setenv("SNAKEPIT_UNSERIALIZABLE_DETAIL", "repr_redacted_truncated")
    monkeypatch.setenv("SNAKEPIT_UNSERIALIZABLE_REPR_MAXLEN", "bad")
    assert marker()["__repr__"] == "Opaque(password='<REDACTED>', key=sk-<REDACTED>)"
    monkeypatch.setenv("SNAKEPIT_TOLIST_MAX_ELEMENTS", "1")
    assert marker(np.arange(2))["__type__"] == "numpy.ndarray"


def test_the_worker_checks_an_adapter_and_accepts_options_of_the_original() -> None:
    run = [sys.executable, "-m", "snakepit_bridge.worker", "--heartbeat-independent", "--max-workers", "2"]
    good = [*run, "--health-check", "--adapter", "snakepit_bridge.testing.ToolTester"]
    bad = subprocess.run(good, check=False, capture_output=True, text=True)  # noqa: S603
    assert bad.returncode == 1
    assert "has no tools" in bad.stderr
    showcase = "snakepit_bridge.adapters.showcase.showcase_adapter.ShowcaseAdapter"
    checked = subprocess.run(  # noqa: S603
        [*run, "--health-check", "--adapter", showcase], check=True, capture_output=True, text=True
    )
    assert checked.stdout == f"adapter `{showcase}` can be served\n"
