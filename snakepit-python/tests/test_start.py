"""The imports of a worker, and the equivalence of the package's parsers with `inspect` and `typing`."""

from __future__ import annotations

import argparse
import ast
import asyncio
import asyncio.base_events
import collections
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest

from snakepit_bridge import BaseAdapter, _docstrings, _signatures
from snakepit_bridge._event_loop import EventLoop
from snakepit_bridge._plan import plan_of

#: Ordinary functions of an adapter.
ORDINARY = '''
from collections.abc import Iterator, Mapping, Sequence
from snakepit_bridge import BaseAdapter, tool

text = str
Numbers = list[int]

class Base(BaseAdapter):
    @tool
    def inherited(self, a: int) -> None: ...

class Ordinary(Base):
    @tool
    def nothing(self): ...
    @tool
    def plain(self, a, b: int, c: float = 1.5, *, d: str, e: bytes = b"e", f: "bool" = True) -> None:
        """One line.	With a tab."""
    @tool
    def defaults(self, a: int = 1, b: str = "", c=None, *, d=(), e): ...
    @tool
    def rest(self, a: int, *, b: dict = {}, **others: str) -> None: ...
    @tool
    def passed_on(*arguments: int, **named: int) -> None: ...
    @tool
    def generic(self, a: list[str], b: Mapping[str, int], c: Sequence["text"], d: tuple[int, ...],
                e: set[int], f: dict[str, list[float]]) -> Iterator[int]:
        yield from e
    @tool
    async def unions(self, a: int | None = None, b: int | None = 1, c: int | str | None = None,
                     d: list[int] | None = None, e: "bytes | None" = None, f: None = None): ...
    @tool
    async def odd(self, a: "text", b: "list[text]", c: Numbers, d: object, h: "None"):
        yield 1
    @tool
    def documented(self, first: int, second: str, third: float) -> None:
        """Take them all.

            Indented.

        Args:
            first: What it is,
                at length.
            second (dict[str: int]): In brackets : with colons.
            *third : Starred.
            no argument
        Raises:
            ValueError: never
        """
    @classmethod
    @tool
    def on_class(cls, a: object = ..., b=int) -> list[text]: ...
    @staticmethod
    @tool(idempotent=True, description="Set.")
    def static(a: memoryview, b: "bytearray") -> None: ...
'''

#: Modules with functions of all kinds.
MODULES = [argparse, ast, asyncio.base_events, collections, dataclasses, os, re, subprocess, typing, np]


def run_python(code: str, path: Path) -> str:
    """Returns the output of code that a new interpreter runs."""
    inherited = os.environ.get("PYTHONPATH", "")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(path), inherited]))}
    return subprocess.run([sys.executable, "-c", code], env=env, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603


#: The same source, with annotations as strings.
DEFERRED = "from __future__ import annotations\n" + re.sub(r': "([^"]+)"', r": \1", ORDINARY)


@pytest.mark.parametrize("source", [ORDINARY, DEFERRED], ids=["ordinary", "deferred"])
def test_specs_of_ordinary_tools_match_inspect_and_typing(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ordinary.py").write_text(source)
    specs = "[tool.spec for tool in plan_of(ordinary.Ordinary, EventLoop()).tools]"
    plain = run_python(
        "import ordinary, sys\n"
        "from snakepit_bridge._plan import EventLoop, plan_of\n"
        f"print({specs})\n"
        "assert sys.modules.keys().isdisjoint({'inspect', 'typing'})\n",
        tmp_path,
    )

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ordinary", raising=False)
    for module in (_docstrings, _signatures):
        monkeypatch.setattr(module, "is_ordinary", lambda _: False)
    scope = {"ordinary": __import__("ordinary"), "plan_of": plan_of, "EventLoop": EventLoop}
    expected = eval(specs, scope)  # noqa: S307
    assert plain.strip() == repr(expected)
    assert len(expected) == 12


def functions() -> list[tuple[FunctionType, type]]:
    """Returns functions of the standard library and numpy, each with its class."""
    owners = [owner for module in MODULES for owner in vars(module).values() if isinstance(owner, type)]
    methods = [(member, owner) for owner in owners for member in vars(owner).values()]
    members = [*methods, *((member, object) for module in MODULES for member in vars(module).values())]
    return [(member, owner) for member, owner in members if isinstance(member, FunctionType)]


def test_parameters_kinds_and_docstrings_match_inspect() -> None:
    ordinary = 0
    for function, owner in functions():
        ordinary += _signatures.is_ordinary(function)
        expected = [
            (p.name, p.kind, _signatures.EMPTY if p.default is p.empty else p.default)
            for p in inspect.signature(function).parameters.values()
        ]
        got = [(p.name, p.kind, p.default) for p in _signatures.parameters_of(function)]
        assert [entry[:2] for entry in got] == [entry[:2] for entry in expected], function
        assert all(a[2] is b[2] for a, b in zip(got, expected, strict=True)), function
        inner = inspect.unwrap(function)
        assert _signatures.is_generator_function(function) == (
            inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)
        )
        # `inspect` also searches the metaclass, which does not affect inherited methods.
        if not hasattr(type(owner), function.__name__):
            assert _docstrings.docstring_of(function, owner) == (inspect.getdoc(function) or ""), function
    assert ordinary > 1000


@pytest.mark.parametrize(
    "line",
    [
        "name: text",
        "name:",
        "name : text ",
        "*args: text",
        "**kwargs: text",
        "***odd: text",
        "name (int): text",
        "name(dict[str: int]) : text: more",
        "name (int: text",
        "name (a) (b): text",
        "naïve_2: text",
        "two words: text",
        ": text",
        "",
        "name",
        " name: text",
        "* name: text",
        "name\t(int)\t:\ttext",
    ],
)
def test_the_parser_of_arguments_accepts_the_same_lines_as_the_pattern(line: str) -> None:
    match = re.match(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$", line)
    assert _docstrings._argument(line) == (match and (match[1], match[2].strip()))


def test_a_worker_imports_only_this_package(tmp_path: Path) -> None:
    """Importing `inspect` and `typing` would take most of a worker's start time and memory."""
    (tmp_path / "ordinary.py").write_text(ORDINARY)
    (tmp_path / "listed.py").write_text(
        "import os, sys\n"
        "from ordinary import Ordinary\n"
        "class Listed(Ordinary):\n"
        "    @staticmethod\n"
        "    def process_init():\n"
        "        print(*sys.modules, flush=True)\n"
        "        os._exit(0)\n"
    )
    bare = run_python("import sys, collections.abc\nprint(*sys.modules)", tmp_path).split()
    worker = run_python(
        "from snakepit_bridge.worker import main\n"
        "main(['--adapter', 'listed:Listed', '--port', '0', '--elixir-address', 'unix:/x', '--snakepit-run-id', 'r'])",
        tmp_path,
    ).split()
    more = {name for name in set(worker) - set(bare) if not name.startswith("snakepit_bridge")}
    # `_contextvars` is necessary, because each call has its own context.
    assert more == {"__future__", "_contextvars", "listed", "ordinary"}
    # Modules that only calls need.
    late = {f"snakepit_bridge.{name}" for name in ("errors", "programs", "session_context", "variables")}
    assert late.isdisjoint(worker)


def test_importing_the_worker_does_not_change_the_garbage_collector(tmp_path: Path) -> None:
    code = "import gc\nimport snakepit_bridge.worker\nprint(gc.isenabled(), gc.get_freeze_count() > 0)"
    assert run_python(code, tmp_path).split() == ["True", "False"]
    fails = (
        "import gc, sys\nsys.modules['snakepit_bridge._native'] = None\n"
        "try:\n    import snakepit_bridge.worker\nexcept ImportError:\n    print(gc.isenabled())"
    )
    assert run_python(fails, tmp_path).split() == ["True"]


def test_a_tool_with_plain_hints_needs_no_converters(tmp_path: Path) -> None:
    """The native runtime alone handles plain hints, as fast as missing ones."""
    (tmp_path / "simple.py").write_text(
        "from collections.abc import Iterator\n"
        "from snakepit_bridge import BaseAdapter, tool\n"
        "class Simple(BaseAdapter):\n"
        "    @tool\n"
        "    def value(self, f: object, a: int, b: float = 1, c: str | None = None, d: dict = {}, e=1) -> float: ...\n"
        "    @tool\n"
        "    def items(self, a: bytes, b: bool, c: list) -> Iterator[int | None]: yield 1\n"
    )
    checks = (
        "import simple, sys\n"
        "from snakepit_bridge._plan import EventLoop, plan_of\n"
        "value, items = plan_of(simple.Simple, EventLoop()).tools\n"
        "assert value.contract.read is None and items.contract.read is None\n"
        "assert value.contract.result.exact == (float,) and value.contract.item is None\n"
        "assert items.contract.item.exact == (int, type(None)) and items.contract.result is None\n"
        "keys = {key for tool in (value, items) for parameter in tool.spec['parameters'] for key in parameter}\n"
        "assert keys == {'name', 'type', 'description', 'required', 'default'}, keys\n"
        "print(*(name for name in sys.modules if '_hints' in name))\n"
    )
    assert run_python(checks, tmp_path).strip() == ""


def test_annotations_of_an_adapter_can_be_evaluated() -> None:
    class Annotated(BaseAdapter):
        count: int

    assert typing.get_type_hints(Annotated) == {"count": int}
