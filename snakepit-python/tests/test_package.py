"""The names of the package, most of which are imported at their first use."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import snakepit_bridge


def test_public_modules_are_attributes_without_an_import() -> None:
    code = (
        "import sys, snakepit_bridge\n"
        "assert 'snakepit_bridge.errors' not in sys.modules\n"
        "print(snakepit_bridge.errors.ToolError.__name__, snakepit_bridge.variables.VariableType.FLOAT)\n"
        "print(hasattr(snakepit_bridge, '_converters'), hasattr(snakepit_bridge, 'testing'))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)  # noqa: S603
    assert printed.stdout == "ToolError float\nFalse False\n"


def test_all_names_are_listed_and_can_be_imported() -> None:
    assert set(snakepit_bridge.__all__) <= set(dir(snakepit_bridge))
    for name in snakepit_bridge.__all__:
        assert getattr(snakepit_bridge, name) is not None


def test_type_checkers_see_the_names_that_are_imported_later() -> None:
    tree = ast.parse(Path(snakepit_bridge.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    prefix = "snakepit_bridge."
    seen = {alias.name: str(node.module).removeprefix(prefix) for node in imports for alias in node.names}
    assert seen == snakepit_bridge._LAZY
