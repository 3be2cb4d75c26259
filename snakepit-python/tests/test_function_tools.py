"""Functions of modules as tools, and the paths of adapters."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import greetings
from snakepit_bridge import current_context
from snakepit_bridge._loading import load
from snakepit_bridge.testing import AdapterError, ToolTester, call_tool, call_tool_async

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module to a directory that Python searches, and forgets it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> Path:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return path

    yield write
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def tools_of(path: str | ModuleType) -> list[str]:
    with ToolTester(path) as tester:
        return list(tester._tools)


def problem_of(path: str) -> str:
    with pytest.raises(AdapterError) as caught:
        ToolTester(load(path))
    return str(caught.value)


def test_tools_of_other_modules_must_be_listed(write: Write) -> None:
    write("library", "from snakepit_bridge import tool\n@tool\ndef double(x: int) -> int: return 2 * x\n")
    write("importing", "from library import double\n")
    assert "its tools `double` are defined in other modules; list them in `__all__`" in problem_of("importing")
    write("listing", "from library import double\n__all__ = ['double']\n")
    assert tools_of("listing") == ["double"]


def test_a_decorator_that_hides_its_function_gets_advice(write: Write) -> None:
    write(
        "tracing", "def traced(f):\n    def wrapper(*args, **kwargs): return f(*args, **kwargs)\n    return wrapper\n"
    )
    write("hidden", "from tracing import traced\n@traced\ndef double(x: int) -> int: return 2 * x\n")
    assert (
        "it has no tools; its function `double` is `tracing.traced.<locals>.wrapper`, which a decorator returned; use "
        "`functools.wraps` in the decorator"
    ) in problem_of("hidden")


#: An object such as the proxies of web frameworks: each lookup raises an exception that is no `AttributeError`.
LAZY = """
class Lazy:
    __slots__ = ()
    def __getattr__(self, name): raise RuntimeError(f"there is no {name} yet")
    def __call__(self): ...
"""


def test_objects_that_raise_at_lookups_are_no_tools(write: Write) -> None:
    write(
        "lazy",
        f"{LAZY}\nrequest = Lazy()\nclass Settings:\n    request = Lazy()\ndef double(x: int) -> int: return 2 * x\n",
    )
    assert tools_of("lazy") == ["double"]
    assert "`double`" in problem_of("lazy:missing")
    write(
        "lazy_class",
        "from snakepit_bridge import tool\n"
        f"{LAZY}\n"
        "class Adapter:\n"
        "    request = Lazy()\n"
        "    @tool\n"
        "    def double(self, x: int) -> int: return 2 * x\n",
    )
    assert tools_of("lazy_class") == ["double"]


def test_a_module_may_define_models_of_pydantic(write: Write) -> None:
    pytest.importorskip("pydantic")
    write(
        "models",
        "from pydantic import BaseModel\n"
        "class Point(BaseModel):\n"
        "    x: int\n"
        "def shifted(point: Point) -> Point: return Point(x=point.x + 1)\n",
    )
    assert tools_of("models") == ["shifted"]
    assert call_tool("models", "shifted", point={"x": 1}) == {"x": 2}


def test_public_functions_that_a_module_defines_are_tools(write: Write) -> None:
    write(
        "plain",
        "import functools\n"
        "from os.path import join\n"
        "from typing import NewType\n"
        "UserId = NewType('UserId', int)\n"
        "class Helper:\n"
        "    def __call__(self): ...\n"
        "helper = Helper()\n"
        "def double(x: int) -> int:\n"
        "    'Double a number.'\n"
        "    return 2 * x\n"
        "@functools.cache\n"
        "def squared(x: int) -> int: return x * x\n"
        "async def later() -> str: return 'late'\n"
        "def items():\n"
        "    yield from (1, 2)\n"
        "def initialize() -> str: return 'no hook'\n"
        "def process() -> str: return 'a name of adapters'\n"
        "def _private() -> None: ...\n"
        "def process_init() -> None: ...\n",
    )
    expected = ["double", "squared", "later", "items", "initialize", "process"]
    for path in ("plain:", "plain"):
        assert tools_of(path) == expected
    with ToolTester("plain:") as tester:
        assert tester.call("double", x=2) == 4
        assert tester.call("squared", x=3) == 9
        assert tester.call("later") == "late"
        assert tester.call("initialize") == "no hook"
        assert tester.call("process") == "a name of adapters"
        assert [chunk.data for chunk in tester.stream("items")] == [1, 2]
        spec = tester._tools["double"].spec
    assert (spec["description"], spec["metadata"]["module"]) == ("Double a number.", "plain")
    assert [parameter["name"] for parameter in spec["parameters"]] == ["x"]


def test_all_and_the_decorator_select_the_tools(write: Write) -> None:
    write("listed", "from os.path import basename\n__all__ = ['basename', 'UPPER']\nUPPER = 1\ndef other(): ...\n")
    assert tools_of("listed:") == ["basename"]
    write(
        "callables",
        "from functools import partial\n"
        "class Scaled:\n"
        "    def __call__(self, x: int) -> int: return 3 * x\n"
        "def add(x: int, y: int) -> int: return x + y\n"
        "added, scaled, Pair = partial(add, 1), Scaled(), tuple[int, int]\n"
        "__all__ = ['added', 'scaled', 'Pair', 'Scaled']\n",
    )
    assert tools_of("callables:") == ["added", "scaled"]
    assert (call_tool("callables:", "added", y=2), call_tool("callables:", "scaled", x=2)) == (3, 6)
    write("stale", "__all__ = ['present', 'missing']\ndef present(): ...\n")
    assert "it has no `missing`, which `__all__` lists; define it, or remove it" in problem_of("stale:")
    write(
        "marked",
        "from functools import partial\n"
        "from snakepit_bridge import tool\n"
        "@tool(name='public', idempotent=True)\n"
        "def first(): return 1\n"
        "def helper(): ...\n"
        "def scale(x: float, factor: float) -> float: return x * factor\n"
        "double = tool(partial(scale, factor=2.0))\n",
    )
    assert tools_of("marked:") == ["public", "double"]
    assert call_tool("marked:", "double", x=4.0) == 8.0
    write("doubled", "from snakepit_bridge import tool\n@tool(name='a')\ndef b(): ...\n@tool\ndef a(): ...\n")
    assert "functions `b` and `a` are both the tool `a`" in problem_of("doubled:")


def test_one_function_and_files_can_be_served(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("app", "import neighbor\ndef one() -> int: return neighbor.ONE\ndef two() -> int: return 2\n")
    write("neighbor", "ONE = 1\n")
    assert tools_of("app:one") == tools_of("app.one") == ["one"]
    packaged = write("pack.inner.tools", "from .. import NAME\ndef name() -> str: return NAME\n")
    write("pack.__init__", "NAME = 'pack'\n")
    write("pack.inner.__init__", "")
    # Neither the directory nor the modules are known now.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(file.parent)])
    monkeypatch.chdir("/")
    for name in ("app", "neighbor"):
        sys.modules.pop(name, None)
    assert call_tool(str(file), "one") == 1
    assert tools_of(f"{file}:two") == ["two"]
    assert tools_of(os.path.relpath(file)) == ["one", "two"]
    assert call_tool(str(packaged), "name") == "pack"
    assert sys.path.count(str(file.parent)) == 1


def test_a_module_with_one_adapter_class_serves_the_class(write: Write) -> None:
    source = (
        "from snakepit_bridge import BaseAdapter, tool\n"
        "def helper(): ...\n"
        "class Base(BaseAdapter):\n"
        "    @tool\n"
        "    def hello(self) -> str: return 'hello'\n"
        "class Shop(Base): ...\n"
    )
    write("classy", source)
    assert tools_of("classy:") == ["hello"]
    write("several", source + "class Other(Base): ...\n")
    assert "name one of `several:Shop`, `several:Other`" in problem_of("several:")
    write("mixed", source + "@tool\ndef marked(): ...\n")
    assert "serve them from two modules" in problem_of("mixed:")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("empty:", "module `empty` cannot be served: it has no tools; define a function"),
        ("empty:VALUE", "is neither a class nor a function, but of type `int`; module `empty` defines no class and no"),
        ("empty:other", "module `empty` has no attribute `other`"),
        (":", "does not name a module"),
        ("json.py", "there is no file"),
    ],
)
def test_a_path_without_tools_is_rejected(write: Write, path: str, problem: str) -> None:
    write("empty", "VALUE = 1\ndef _private(): ...\n")
    assert problem in problem_of(path)


def test_a_file_with_the_name_of_another_module_is_rejected(write: Write) -> None:
    file = write("json", "def f(): ...\n")
    assert "its name `json` belongs to another module" in problem_of(str(file))


async def _served() -> Any:
    return await call_tool_async(greetings, "greet", name="Ann")


def test_modules_and_functions_are_adapters_of_the_tester() -> None:
    import asyncio

    assert call_tool(greetings, "greet", name="Ann") == "Hello, Ann!"
    assert call_tool(greetings.greet, "greet", name="Ann", adapter_args={"greeting": "Hi"}) == "Hi, Ann!"
    assert asyncio.run(_served()) == "Hello, Ann!"
    assert tools_of(greetings) == ["greet", "visit"]
    with ToolTester(greetings) as tester:
        assert [tester.call("visit", name="Ann") for _ in range(2)] == [1, 2]
    with pytest.raises(RuntimeError, match="no tool runs here"):
        current_context()
    with pytest.raises(TypeError, match="adapter is an instance of `int`"):
        ToolTester(1)  # type: ignore[arg-type]


def test_a_module_whose_attributes_raise_is_loaded_or_named(write: Write) -> None:
    # Python looks for `__all__` and the functions around the life of a worker in each module.
    write("odd_names", "def __getattr__(name): raise KeyError(name)\ndef double(x: int) -> int: return 2 * x\n")
    assert tools_of("odd_names") == ["double"]
    assert "the attribute `missing` of module `odd_names` raises KeyError: 'missing'" in problem_of("odd_names:missing")
    write("listed_raising", "__all__ = ['gone']\ndef __getattr__(name): raise KeyError(name)\n")
    assert "its attribute `gone` raises KeyError: 'gone'" in problem_of("listed_raising")


#: A class whose module cannot be read.
NO_MODULE = """
from snakepit_bridge import BaseAdapter, tool

class Meta(type):
    @property
    def __module__(cls):
        raise RuntimeError("no module")

class Odd(BaseAdapter, metaclass=Meta):
    @tool
    def double(self, x: int) -> int: return 2 * x
"""


def test_a_class_whose_module_cannot_be_read_is_named(write: Write) -> None:
    write("no_module", NO_MODULE)
    for path in ("no_module:Odd", "no_module"):
        expected = "adapter `Odd` cannot be used: its attribute `__module__` raises RuntimeError: no module"
        assert problem_of(path) == expected


def test_the_message_of_an_import_error_can_be_encoded(write: Write) -> None:
    write("surrogate", "raise ValueError('a' + chr(0xd800))\n")
    problem = problem_of("surrogate")
    assert problem == "adapter `surrogate` cannot be imported: ValueError: a\\ud800"
    write("missing_surrogate", "__import__('gone' + chr(0xd800))\n")
    problem_of("missing_surrogate").encode()


def test_arguments_that_no_call_can_pass_are_rejected(write: Write) -> None:
    write("positional", "def total(*numbers: int) -> int: return sum(numbers)\n")
    problem = problem_of("positional")
    assert "tool `total` has the parameter `*numbers`, but arguments come by name; take a list instead" in problem
    write("unhinted", "def total(*numbers): return sum(numbers)\n")
    assert "the parameter `*numbers`" in problem_of("unhinted")
    wrapper = "def wrapper(*args, **kwargs): return double(*args, **kwargs)\ndef double(x: int) -> int: return 2 * x\n"
    write("wrapped", f"import functools\n{wrapper}again = functools.wraps(double)(lambda *args, **kwargs: 3)\n")
    assert sorted(tools_of("wrapped")) == ["again", "double", "wrapper"]
    assert call_tool("wrapped", "wrapper", x=4) == 8
