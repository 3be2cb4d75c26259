"""Typed stubs: the generated module works, passes mypy, and rejects wrong types."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest

import snakepit_bridge
from snakepit_bridge import AsyncClient, Client, _stubs
from snakepit_bridge._daemon import Daemon
from snakepit_bridge._launch import find_binary
from snakepit_bridge._listings import ToolInfo
from snakepit_bridge._stubs import generate, main

ADAPTER = '''
import enum
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict
from uuid import UUID

import numpy as np
import pydantic

from snakepit_bridge import tool


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Item:
    """A line of an order.

    It has a price.
    """

    name: str
    price: float
    color: Color = Color.RED


@dataclass
class Node:
    value: int
    children: list["Node"]


class Measured(TypedDict):
    values: np.ndarray[tuple[int, Literal[3]], np.dtype[np.float64]]
    mask: np.ndarray | None


class Model(pydantic.BaseModel):
    name: str
    to: str = pydantic.Field(alias="from")


@tool
def buy(items: list[Item], due: date | None = None, color: Color = Color.RED, paid: bool = False) -> Item:
    """Buy items.

    A text with \\\\ and \\"\\"\\" and a quote"

    Args:
        items: The items
            of one order.
        due: The date of "payment"

    Returns:
        The most expensive item.
    """
    del due, color, paid
    return max(items, key=lambda item: item.price)


@tool
def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from walk(child)


@tool
def mixed(
    data: bytes,
    numbers: list[float],
    names: list[str],
    pairs: dict[str, int],
    point: tuple[int, str],
    when: datetime,
    id: UUID,
    path: Path,
    amount: Decimal,
    kind: Literal["a", 1, None] = None,
    text: str = "don't \\\\ \\"",
    limit: Annotated[int, "the limit"] = -5,
    options: dict[str, Any] | None = None,
    extra: list[int] = [],
    array: np.ndarray | None = None,
) -> dict[str, int]:
    return {"n": len(numbers)}


@tool
def lambda_(self: int, client: int, cast: int = 1) -> list[tuple[int, str]]:
    return [(self + client, str(cast))]


@tool
def rename(model: Model) -> Model:
    return model


@tool
def open_ended(a: int, **rest: int) -> int:
    return a + sum(rest.values())


@tool
def untyped(x=5, y=None):
    return x


@tool
def nothing() -> None:
    pass


@tool
def table() -> np.ndarray:
    return np.zeros(3)


@tool
def scale(
    matrix: np.ndarray[tuple[int, Literal[3]], np.dtype[np.float32]], vector: np.ndarray | None = None
) -> np.ndarray[tuple[int, Literal[3]], np.dtype[np.float32]]:
    return 2 * matrix


@tool
def frames(count: int) -> Iterator[np.ndarray[tuple[Literal[2]], np.dtype[np.int64]]]:
    for number in range(count):
        yield np.array([number, number])


@tool
def measured(data: bool) -> Measured:
    return {"values": np.zeros((2, 3)), "mask": np.ones(2, dtype=bool) if data else None}


@tool
def picture(data: bytes) -> bytes:
    return data[::-1]


def private() -> None:
    pass
'''

USE = """
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import numpy.typing as npt
import tools
from snakepit_bridge import AsyncClient, Client, _stubs
from tools import Item

client = Client()
item: Item = {"name": "tea", "price": 9.5}
best = tools.buy(client, items=[item, {"name": "cup", "price": 1, "color": "blue"}], due=date(2026, 1, 1))
name: str = best["name"]
values: list[int] = [node["value"] for node in tools.walk(client, node={"value": 1, "children": []})]
count: dict[str, int] = tools.mixed(
    client.session("s"), data=b"x", numbers=[1, 2.5], names=["a"], pairs={"a": 1}, point=(1, "a"), when=datetime.now(),
    id=UUID(int=1), path=Path("x"), amount=Decimal(1), kind="a", extra=[1],
)
pairs: list[list[int | str]] = tools.lambda_(client.options(timeout=5), self=1, client_=2)
total: int = tools.open_ended(client, a=1, b=2)
picture: bytes = tools.picture(client, data=b"x")
matrix: npt.NDArray[np.float32] = tools.scale(client, matrix=[[1.0, 2.0, 3.0]])
shape: tuple[int, ...] = tools.scale(client, matrix=matrix, vector=np.zeros(3)).shape
sums: list[int] = [int(frame.sum()) for frame in tools.frames(client, count=2)]
measured = tools.measured(client, data=True)
mean: float = measured["values"].mean()
if (mask := measured["mask"]) is not None:
    count_of_ones = int(mask.sum())
zeros = tools.table(client).tolist()
nothing = tools.nothing
anything = tools.untyped(client, x="any")


async def run(other: AsyncClient) -> None:
    best = await tools.buy_async(other, items=[item])
    price: float = best["price"]
    values: list[int] = [node["value"] async for node in tools.walk_async(other, node={"value": 1, "children": []})]
    session = await other.session("s")
    total: int = await tools.open_ended_async(session, a=1)
    matrix = await tools.scale_async(other, matrix=np.ones((2, 3)))
    sums: list[int] = [int(frame.sum()) async for frame in tools.frames_async(other, count=2)]
"""

#: Wrong uses, and a part of mypy's message.
WRONG = {
    'tools.buy(client, items=[{"name": 5, "price": 1}])': "TypedDict item",
    'tools.buy(client, items=[{"name": "tea"}])': "Missing key",
    'tools.buy(client, items=[], color="green")': "Argument",
    "tools.buy(client)": "Missing named argument",
    "tools.buy(client, items=[], count=1)": "Unexpected keyword argument",
    'tools.walk(client, node={"value": "1", "children": []})': "TypedDict item",
    "tools.buy(5, items=[])": "Argument 1",
    "tools.open_ended(client, a='1')": "Argument",
    "x: str = tools.open_ended(client, a=1)": "Incompatible types in assignment",
    "tools.picture(client, data=5)": "Argument",
    "tools.nothing(client, 5)": "Too many",
    "tools.buy_async(client, items=[])": "Argument 1",
    "tools.buy(client, [])": "Too many positional arguments",
    "tools.scale(client, [[1.0]])": "Too many positional arguments",
    "tools.scale(client, matrix=5)": "Argument",
    "z: str = tools.scale(client, matrix=[])": "Incompatible types in assignment",
    "y: list[list[float]] = tools.scale(client, matrix=[])": "Incompatible types in assignment",
    "tools.measured(client, data=True)['mask'].sum()": "None",
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    adapter = tmp_path_factory.mktemp("adapter") / "typed_tools.py"
    adapter.write_text(ADAPTER)
    with Daemon(str(adapter)) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def stubs(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("stubs") / "tools.py"
    assert main(["--server", daemon.address, "--output", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def tools(stubs: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location("generated_tools", stubs)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def mypy(directory: Path, *files: str) -> str:
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-error-summary",
        "--follow-imports=silent",
        "--hide-error-context",
        *files,
    ]
    cache = ["--cache-dir", str(directory / "cache")]
    path = str(Path(snakepit_bridge.__file__).parents[1])
    finished = subprocess.run(  # noqa: S603
        [*command, *cache], cwd=directory, capture_output=True, text=True, env={**os.environ, "MYPYPATH": path}
    )
    return finished.stdout + finished.stderr


def test_the_module_passes_mypy_and_types_are_checked(stubs: Path) -> None:
    directory = stubs.parent
    (directory / "use.py").write_text(USE)
    wrong = [f"{line}  # case {number}" for number, line in enumerate(WRONG)]
    (directory / "wrong.py").write_text(
        "import tools\nfrom snakepit_bridge import Client\nclient = Client()\n" + "\n".join(wrong)
    )
    output = mypy(directory, "tools.py", "use.py", "wrong.py")
    errors = [line for line in output.splitlines() if not line.startswith("wrong.py") and ": note: " not in line]
    assert not errors, output
    for number, (line, message) in enumerate(WRONG.items(), start=4):
        found = [error for error in output.splitlines() if error.startswith(f"wrong.py:{number}:")]
        assert any(message in error for error in found), (line, output)


def test_functions_call_the_tools(daemon: Daemon, tools: ModuleType) -> None:
    with Client(daemon.address) as client:
        items = [{"name": "tea", "price": 9.5}, {"name": "cup", "price": 1.0}]
        assert tools.buy(client, items=items) == {"name": "tea", "price": 9.5, "color": "red"}
        node = {"value": 1, "children": [{"value": 2, "children": []}]}
        assert [each["value"] for each in tools.walk(client, node=node)] == [1, 2]
        assert tools.lambda_(client, self=1, client_=2) == [[3, "1"]]
        assert tools.rename(client, model={"name": "a", "from": "b"})["from"] == "b"
        assert tools.open_ended(client, a=1, b=2, others=3) == 6
        assert tools.untyped(client) == 5
        assert tools.nothing(client.session("s")) is None
        assert tools.picture(client, data=b"abc") == b"cba"
        assert tools.table(client).shape == (3,)
        assert tools.scale(client, matrix=[[1, 2, 3]]).tolist() == [[2.0, 4.0, 6.0]]
        assert tools.scale(client, matrix=np.ones((2, 3))).shape == (2, 3)
        assert [frame.tolist() for frame in tools.frames(client, count=2)] == [[0, 0], [1, 1]]
        assert tools.measured(client, data=True)["mask"].tolist() == [True, True]
        with pytest.raises(TypeError, match="positional"):
            tools.scale(client, [[1, 2, 3]])
        with pytest.raises(TypeError):
            tools.buy(client)
        values: dict[str, Any] = {
            "data": b"x",
            "numbers": [1.0, 2.0],
            "names": ("a",),
            "pairs": {},
            "point": (1, "a"),
            "when": "2026-01-01T00:00:00",
            "id": "00000000-0000-0000-0000-000000000001",
            "path": "x",
            "amount": "1",
        }
        assert tools.mixed(client, **values) == {"n": 2}

    async def run() -> None:
        async with AsyncClient(daemon.address) as client:
            assert (await tools.buy_async(client, items=items))["name"] == "tea"
            assert [each["value"] async for each in tools.walk_async(client, node=node)] == [1, 2]
            assert await tools.untyped_async(client) == 5

    asyncio.run(run())


def test_functions_have_documentation_and_defaults(tools: ModuleType, stubs: Path) -> None:
    import inspect

    documentation = inspect.getdoc(tools.buy)
    assert documentation is not None
    assert documentation.startswith('Buy items.\n\nA text with \\ and """ and a quote"')
    assert 'due: The date of "payment"' in documentation
    assert "Returns:" in documentation
    assert inspect.signature(tools.mixed).parameters["text"].default == "don't \\ \""
    assert inspect.signature(tools.mixed).parameters["limit"].default == -5
    assert tools.Item.__doc__ == "A line of an order."
    assert "def private" not in stubs.read_text()


def test_the_command(daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("SNAKEPIT_SERVER", daemon.address)
    assert main(["--tool", "nothing", "--tool", "untyped"]) == 0
    text = capsys.readouterr().out
    assert "def nothing(client: Caller, /) -> None:" in text
    assert "def buy" not in text
    file = tmp_path / "tools.py"
    assert main(["--check", "--output", str(file)]) == 1
    assert main(["--output", str(file), "--wait", "5"]) == 0
    assert main(["--check", "--output", str(file)]) == 0
    file.write_text("other")
    assert main(["--check", "--output", str(file)]) == 1
    assert "differs from the tools" in capsys.readouterr().err
    assert file.read_text() == "other"
    assert main(["--tool", "missing"]) == 3
    assert "`missing`" in capsys.readouterr().err
    assert main(["--server", f"unix:{tmp_path}/none"]) == 4
    assert main(["--output", str(tmp_path / "no" / "file")]) == 6
    assert main(["--output", "/dev/full"]) == 6
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stdout", None)
        assert main([]) == 6
    assert main(["--server", "nonsense"]) == 3
    with pytest.raises(SystemExit):
        main(["--check"])
    assert _stubs.main is main


@pytest.mark.parametrize("text", ['Say "hi"', 'Say "hi"\n', '"', "end\\", 'a """ b "\n\n'])
def test_any_description_becomes_a_docstring(text: str) -> None:
    tool = {"name": "say", "description": text, "supports_streaming": False, "result_schema": None, "parameters": []}
    schema = {"type": "object", "properties": {"word": {"type": "string", "description": text}}, "required": ["word"]}
    source = generate({"say": cast("ToolInfo", {**tool, "input_schema": schema, "item_schema": None})})
    namespace: dict[str, Any] = {}
    exec(compile(source, "generated", "exec"), namespace)  # noqa: S102
    assert text.strip() in namespace["say"].__doc__


def test_names_of_a_host_cannot_break_the_module() -> None:
    schema = {"type": "object", "properties": {"a b": {"type": "string"}, "class": {}}, "additionalProperties": False}
    tool: Any = {
        "description": 'evil """\nimport os\n"""\\',
        "parameters": [],
        "supports_streaming": False,
        "provider": "host",
        "input_schema": {**schema, "properties": {**schema["properties"], "x": {"default": 'a"\nb', "type": "string"}}},  # type: ignore[dict-item]
        "result_schema": {"anyOf": [{"$ref": "#/$defs/Missing"}, {"type": ["integer", "null"]}]},
        "item_schema": None,
    }
    names = [
        "a b",
        "a-b",
        "1",
        "def",
        "",
        "é",
        "x\ny",
        '"); import os; ("',
        "list",
        "Any",
        "_given",
        "client",
        "add_async",
        "add",
    ]
    source = generate({name: cast("ToolInfo", {**tool, "name": name}) for name in names})
    namespace: dict[str, Any] = {}
    exec(compile(source, "generated", "exec"), namespace)  # noqa: S102
    assert {"a_b", "a_b_2", "def_", "add", "add_async", "add_async_2"} <= namespace.keys()
    assert "os" not in namespace

    class Recorder:
        def call(self, name: str, /, **arguments: Any) -> Any:
            return name, arguments

    called = [namespace[name](Recorder(), class_=1) for name in ("a_b", "a_b_2", "def_")]
    assert called == [(name, {"class": 1, "x": 'a"\nb'}) for name in ("a b", "a-b", "def")]


def test_recursive_and_equal_classes_are_defined_once(stubs: Path) -> None:
    source = stubs.read_text()
    assert source.count("class Node(TypedDict)") == 1
    assert "children: list[Node" in source


def test_the_command_of_the_daemon_runs_the_generator(daemon: Daemon, tmp_path: Path) -> None:
    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "SNAKEPIT_PYTHON": sys.executable,
            "PYTHONPATH": str(Path(snakepit_bridge.__file__).parents[1]),
            **changes,
        }
        command = [str(find_binary()), "stubs", "--server", daemon.address, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603

    file = tmp_path / "tools.py"
    assert "def nothing(" in run("--tool", "nothing", "--tool=picture").stdout
    assert run("--output", str(file), "--wait", "5").returncode == 0
    assert file.read_text() == run().stdout
    assert run("--output", str(file), "--check").returncode == 0
    file.write_text("")
    assert run("--output", str(file), "--check").returncode == 1
    assert run("--check").returncode == 2
    (tmp_path / "snakepit_bridge.py").write_text("")
    without_package = run(PYTHONPATH=str(tmp_path))
    assert (without_package.returncode, "cannot import" in without_package.stderr) == (5, True)
    assert run(SNAKEPIT_PYTHON=str(tmp_path / "none")).returncode == 5
    missing = run("--tool", "missing")
    assert (missing.returncode, missing.stderr.startswith("snakepit: tool `missing`")) == (3, True)
