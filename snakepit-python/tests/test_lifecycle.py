"""The life cycle of a worker: ``lifespan``, ``process_init``, ``process_exit``, and the arguments of adapters."""

from __future__ import annotations

import asyncio
import enum
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from snakepit_bridge import BaseAdapter, WorkerInfo, tool, worker_info
from snakepit_bridge._event_loop import EventLoop
from snakepit_bridge._lifecycle import Lifecycle
from snakepit_bridge.testing import AdapterError, ToolTester, call_tool


def test_everything_runs_in_the_order_of_a_stack() -> None:
    steps: list[str] = []

    class Ordered(BaseAdapter):
        def __init__(self) -> None:
            steps.append("object")

        @staticmethod
        @contextmanager
        def lifespan() -> Iterator[None]:
            steps.append("enter")
            yield
            steps.append("leave")

        @classmethod
        async def process_init(cls) -> None:
            steps.append("init")
            cls.process.model = object()

        @classmethod
        async def process_exit(cls) -> None:
            assert cls.process.model
            steps.append("exit")

        @tool
        def same(self) -> bool:
            return self.process.model is self.session_context.process.model is type(self).process.model

    with ToolTester(Ordered) as tester:
        assert steps == ["enter", "init", "object"]
        assert tester.call("same")
        assert tester.call("same")
    assert steps == ["enter", "init", "object", "object", "object", "exit", "leave"]


def test_an_asynchronous_lifespan_shares_the_loop_and_the_task() -> None:
    class Async(BaseAdapter):
        @classmethod
        @asynccontextmanager
        async def lifespan(cls) -> AsyncIterator[dict[str, Any]]:
            entered = asyncio.current_task()
            # A task group and a timeout must end in the task that began them.
            async with asyncio.TaskGroup() as group, asyncio.timeout(60):
                ticks: asyncio.Queue[int] = asyncio.Queue()
                ticker = group.create_task(cls.tick(ticks))
                yield {"loop": asyncio.get_running_loop(), "ticks": ticks, "left": []}
                ticker.cancel()
            cls.process.left.append(asyncio.current_task() is entered)

        @staticmethod
        async def tick(ticks: asyncio.Queue[int]) -> None:
            for number in range(1000):
                await ticks.put(number)
                await asyncio.sleep(0)

        @tool
        async def next(self) -> list[int]:
            assert asyncio.get_running_loop() is self.process.loop
            return [await self.process.ticks.get() for _ in range(3)]

    tester = ToolTester(Async)
    assert tester.call("next") == [0, 1, 2]
    assert tester.call("next") == [3, 4, 5]
    left = tester._base.run(lambda: Async.process.left)
    tester.close()
    assert left == [True]


def test_testers_do_not_share_what_lives_in_the_process() -> None:
    class Counting(BaseAdapter):
        @classmethod
        def process_init(cls) -> None:
            cls.process.calls = 0

        @tool
        def count(self) -> int:
            self.process.calls += 1
            return int(self.process.calls)

    with ToolTester(Counting) as first, ToolTester(Counting) as second:
        assert [first.call("count"), first.call("count"), second.call("count")] == [1, 2, 1]
    with pytest.raises(AttributeError, match="no attribute `calls`; set it in `process_init`"):
        _ = Counting.process.calls


class Configured(BaseAdapter):
    """Takes arguments in all functions that may."""

    @staticmethod
    @contextmanager
    def lifespan(path: Path, *, size: int = 3) -> Iterator[dict[str, Any]]:
        yield {"path": path, "size": size}

    @classmethod
    def process_init(cls, names: list[str], size: int = 3) -> None:
        cls.process.names = names * size

    def __init__(self, scale: float = 1.0, debug: bool | None = None) -> None:
        self.scale = scale
        self.debug = debug

    @tool
    def seen(self) -> list[Any]:
        process = self.process
        assert isinstance(process.path, Path)
        assert isinstance(self.scale, float)
        return [str(process.path), process.size, process.names, self.scale, self.debug]


def test_arguments_reach_the_functions_that_take_them() -> None:
    given = {"path": "/m", "names": ["a"], "scale": 2, "size": 2}
    assert call_tool(Configured, "seen", adapter_args=given) == ["/m", 2, ["a", "a"], 2.0, None]
    # A command line has only texts.
    texts = {"path": "/m", "names": '["a"]', "scale": "0.5", "size": "1", "debug": "true"}
    assert call_tool(Configured, "seen", adapter_args=texts) == ["/m", 1, ["a"], 0.5, True]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"names": []}, "argument `path` is missing, which `lifespan` of adapter `Configured` needs; .*path=VALUE"),
        ({"path": "x"}, "argument `names` is missing, which `process_init`"),
        (
            {"path": "x", "names": [], "sice": 1},
            "argument `sice` is unknown; adapter `Configured` takes `path`, `size`",
        ),
        ({"path": "x", "names": [], "size": "many"}, "`size` of `lifespan` .* is a string, expected integer"),
        ({"path": "x", "names": [], "size": True}, "`size` .* is a boolean, expected integer"),
        ({"path": "x", "names": {}}, "`names` .* is a map, expected list"),
        ({"path": 1, "names": []}, "`path` .* is an integer, expected a path"),
        ({"path": "x", "names": [], "scale": None}, "`scale` of `__init__` .* is a null, expected float"),
        (
            {"path": "x", "names": [], "debug": "True"},
            "`debug` of `__init__` .* is a string, .*; `True` is `true` in JSON",
        ),
        (
            {"path": "x", "names": [], "size": "None"},
            "`size` .* is a string, expected integer; `None` is `null` in JSON",
        ),
    ],
)
def test_missing_unknown_and_wrong_arguments_fail_the_start(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(AdapterError, match=f"adapter .*{problem}"):
        ToolTester(Configured, adapter_args=given)


def test_a_class_without_parameters_takes_no_arguments() -> None:
    class Plain(BaseAdapter):
        @tool
        def f(self) -> None: ...

    with pytest.raises(AdapterError, match=r"argument `x` is unknown; adapter `.*Plain` takes none"):
        ToolTester(Plain, adapter_args={"x": 1})

    class Anything(Plain):
        @classmethod
        def process_init(cls, **options: Any) -> None:
            cls.process.options = options

        @tool
        def options(self) -> Any:
            return self.process.options

    assert call_tool(Anything, "options", adapter_args={"x": 1}) == {"x": 1}


class Color(enum.Enum):
    RED = "red"


@dataclass
class Size:
    width: int
    height: int = 1


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, "3", 3),
        (float, 3, 3.0),
        (bool, "false", False),
        (bool, "true", True),
        (str, "3", "3"),
        (int | None, None, None),
        (int | None, "4", 4),
        (int | None, "null", None),
        (int | str, "4", "4"),
        (dict, '{"a": 1}', {"a": 1}),
        (list[int], "[1]", [1]),
        (Any, "4", "4"),
        (Path, "/m", Path("/m")),
        (Color, "red", Color.RED),
        (Size, '{"width": 3}', Size(3)),
        (Size, {"width": 3, "height": 4}, Size(3, 4)),
    ],
)
def test_values_are_converted_by_their_hints(hint: Any, value: Any, expected: Any) -> None:
    seen: list[Any] = []

    class Hinted(BaseAdapter):
        def __init__(self, x: Any) -> None:
            seen.append(x)

        @tool
        def f(self) -> None: ...

    Hinted.__init__.__annotations__["x"] = hint
    ToolTester(Hinted, adapter_args={"x": value}).close()
    assert (seen, type(seen[0])) == ([expected], type(expected))


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        ("async def process_init(cls): raise OSError('no weights')", "process_init of .* failed: OSError: no weights"),
        ("def lifespan(cls): return 1", "lifespan of .* failed: TypeError: it returned `int`, which is not a context"),
        (
            "def lifespan(cls):\n        yield",
            "it returned `generator`, .*; decorate it with `contextlib",
        ),
    ],
)
def test_a_failing_hook_fails_the_start(hook: str, problem: str) -> None:
    scope: dict[str, Any] = {"BaseAdapter": BaseAdapter, "tool": tool}
    source = f"class Failing(BaseAdapter):\n    @classmethod\n    {hook}\n    @tool\n    def f(self): ...\n"
    exec(source, scope)  # noqa: S102
    with pytest.raises(AdapterError, match=problem) as caught:
        ToolTester(scope["Failing"])
    assert caught.value.__cause__ is not None


def test_a_hook_that_needs_an_object_fails_the_start() -> None:
    class Forgetful(BaseAdapter):
        def process_init(self) -> None: ...

        @tool
        def f(self) -> None: ...

    with pytest.raises(AdapterError, match=r"`process_init` of .* is a method of objects.*; make it a class method"):
        ToolTester(Forgetful)


def test_what_a_failed_start_entered_is_left() -> None:
    left: list[type[BaseException] | None] = []

    class Manager:
        async def __aenter__(self) -> Manager:
            return self

        async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
            left.append(kind)

    class Half(BaseAdapter):
        @staticmethod
        def lifespan() -> Manager:
            return Manager()

        @staticmethod
        def process_init() -> None:
            raise OSError("no weights")

        @tool
        def f(self) -> None: ...

    async def start() -> None:
        ToolTester(Half)

    # In a coroutine, the tester uses a thread.
    for attempt in (lambda: ToolTester(Half), lambda: asyncio.run(start())):
        with pytest.raises(AdapterError, match="no weights"):
            attempt()
    assert left == [None, None]


def test_a_tool_may_have_the_name_of_a_hook() -> None:
    class Named(BaseAdapter):
        @tool
        def lifespan(self, years: int) -> int:
            return years

        @tool
        def process(self) -> str:  # type: ignore[override]
            return "processed"

    assert call_tool(Named, "lifespan", years=3) == 3
    assert call_tool(Named, "process") == "processed"


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_the_end_has_a_time_limit(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    def ring(*_: object) -> None: ...

    wait = "await asyncio.sleep(600)" if kind == "async def" else "time.sleep(600)"
    scope: dict[str, Any] = {"asyncio": asyncio, "time": time}
    exec(f"class Slow:\n    @staticmethod\n    {kind} process_exit(): {wait}\n", scope)  # noqa: S102
    handler = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, 600)
    try:
        loop = EventLoop()
        life = Lifecycle(scope["Slow"], loop)
        life.start()
        life.stop(0.05)
        loop.close()
        assert signal.getsignal(signal.SIGALRM) is ring
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
    assert "snakepit: process_exit of adapter `Slow` failed: TimeoutError" in capsys.readouterr().err


WORKER = """
import asyncio, sys
from contextlib import asynccontextmanager
from snakepit_bridge import BaseAdapter, tool, worker_info

class Living(BaseAdapter):
    @classmethod
    @asynccontextmanager
    async def lifespan(cls, name: str):
        print("entered", name, worker_info(), flush=True)
        yield {"name": name}
        await asyncio.sleep(0)
        print("left", flush=True)

    @classmethod
    def process_exit(cls):
        print("exit", flush=True)
        raise ValueError("cannot exit")

    @tool
    def f(self): ...
"""


def test_a_worker_that_stops_ends_its_adapter(tmp_path: Path) -> None:
    (tmp_path / "living.py").write_text(WORKER)
    environment = {
        "SNAKEPIT_ADAPTER_ARGS": json.dumps({"name": "Ann"}),
        "SNAKEPIT_WORKER_ID": "gpu-1-3",
        "SNAKEPIT_POOL": "gpu",
        "SNAKEPIT_WORKER_INDEX": "1",
        "SNAKEPIT_WORKER_COUNT": "4",
        "SNAKEPIT_GPU": "1",
    }
    worker = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "snakepit_bridge.worker", "--adapter", str(tmp_path / "living.py")],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with worker:
        assert worker.stdout is not None
        info = WorkerInfo("gpu-1-3", "gpu", 1, 4, "1")
        assert worker.stdout.readline() == f"entered Ann {info}\n"
        assert worker.stdout.readline().startswith("GRPC_READY:")
        worker.terminate()
        out, err = worker.communicate(timeout=10)
    assert worker.returncode == 0
    assert out == "exit\nleft\n"
    assert "snakepit: process_exit of adapter `Living` failed: ValueError: cannot exit\nTraceback" in err


def test_without_a_host_a_worker_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SNAKEPIT_"):
            monkeypatch.delenv(name)
    assert worker_info() == WorkerInfo(f"python-{os.getpid()}", "", 0, 1, None)
