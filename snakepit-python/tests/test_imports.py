"""Functions that run when a module is imported."""

import subprocess
import sys

PROGRAM = """
import importlib.util
import sys
from snakepit_bridge._imports import on_import

assert not {"wave", "colorsys"} & set(sys.modules)
seen = []
finders = list(sys.meta_path)
on_import("sys", lambda module: seen.append(module.__name__))
on_import("wave", lambda module: seen.append((module.__name__, hasattr(module, "open"))))
on_import("colorsys", lambda module: seen.append(module.__name__))
# A library may look for a module without importing it.
spec = importlib.util.find_spec("wave")
assert spec is not None and "def open" in spec.loader.get_source("wave"), spec
assert seen == ["sys"], seen
import wave
assert seen == ["sys", ("wave", True)], seen
assert type(wave.__loader__).__module__.startswith(("importlib", "_frozen")), wave.__loader__
assert wave.__spec__.loader is wave.__loader__
# As in a thread that looks for another module at this moment.
place = iter(sys.meta_path)
next(place)
import colorsys
assert list(place) == finders, sys.meta_path
assert seen[2:] == ["colorsys"], seen
print("ok")
"""


def test_a_function_runs_once_after_the_import() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)  # noqa: S603
    assert (run.stdout, run.stderr) == ("ok\n", "")
