"""Finds the daemon's binary, and prepares its environment and the path of its adapter."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType
    from typing import Any

    #: A class, a module, a function of a module, or the path of one of them, as for a host.
    Adapter = type | ModuleType | Callable[..., Any] | str

#: The environment variable with the path of the binary.
BINARY_VARIABLE = "SNAKEPIT_BINARY"

#: The environment variable with the interpreter of the workers.
PYTHON_VARIABLE = "SNAKEPIT_PYTHON"

#: The name of this package in its metadata.
_DISTRIBUTION = "snakepit-bridge"


class DaemonError(Exception):
    """The daemon cannot be found, did not start, or failed. The message has the reason, or the end of its log."""


def find_binary(directories: Sequence[Path] | None = None) -> Path:
    """Return the path of the daemon's binary.

    It is the first of these that exists:

    1. ``$SNAKEPIT_BINARY``,
    2. the script ``snakepit`` that was installed with this package,
    3. ``snakepit`` on ``$PATH``,
    4. the newer of ``target/debug/snakepit`` and ``target/release/snakepit`` in the nearest directory above the current
       one or above this package. If ``$CARGO_TARGET_DIR`` is set, it takes the place of ``target``.

    Args:
        directories: The directories to search for ``target``, with those above them.

    Raises:
        DaemonError: It does not exist.
    """
    chosen = os.environ.get(BINARY_VARIABLE)
    if chosen:
        if not Path(chosen).is_file():
            raise DaemonError(f"${BINARY_VARIABLE} is `{chosen}`, which is not a file")
        return Path(chosen).resolve()
    installed = _installed_binary()
    if installed is not None:
        return installed
    found = shutil.which("snakepit")
    if found:
        return Path(found).resolve()
    for start in directories or (Path.cwd(), Path(__file__)):
        for directory in (start, *start.parents):
            target = directory / (os.environ.get("CARGO_TARGET_DIR") or "target")
            built = [target / profile / "snakepit" for profile in ("debug", "release")]
            existing = [path for path in built if path.is_file()]
            if existing:
                return max(existing, key=lambda path: path.stat().st_mtime)
    raise DaemonError(
        f"the daemon's binary `snakepit` was not found; install it, put it on $PATH, or set ${BINARY_VARIABLE}"
    )


def _installed_binary() -> Path | None:
    """Return the script that the installer of this package recorded. A package in a checkout has none."""
    from importlib import metadata

    try:
        files = metadata.files(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    scripts = (Path(str(file.locate())) for file in files if file.name == "snakepit")
    return next((script.resolve() for script in scripts if script.is_file()), None)


def inherited_environment() -> dict[str, str]:
    """Return an environment whose workers run with this interpreter and import from the directories of this process.

    Raises:
        DaemonError: The path of this interpreter is unknown, because another program embeds it.
    """
    if not sys.executable:
        raise DaemonError("the path of this Python interpreter is unknown; run `snakepit serve` instead")
    # Without the directories that the interpreter adds itself, because tools may start programs with another Python.
    own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    own |= {str(Path(path, "lib-dynload")) for path in own}
    paths = (path or str(Path.cwd()) for path in sys.path)
    directories = os.pathsep.join(path for path in paths if path not in own and not path.endswith(".zip"))
    return {**os.environ, PYTHON_VARIABLE: sys.executable, "PYTHONPATH": directories}


def isolated_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for tests: without settings of the daemon, apart from the changes."""
    inherited = inherited_environment().items()
    kept = {name: value for name, value in inherited if not name.startswith("SNAKEPIT_") or name == PYTHON_VARIABLE}
    return {**kept, **changes}


def adapter_path(adapter: Adapter) -> str:
    """Return the path by which workers import an adapter.

    A class of the program itself, whose module is ``__main__``, has the path of its file.

    Raises:
        ValueError: Workers cannot import it, because it has no name in a module, or its module has no file.
        TypeError: It is an object of another kind.
    """
    if isinstance(adapter, str):
        file, separator, attribute = adapter.partition(":")
        return f"{Path(file).absolute()}{separator}{attribute}" if file.endswith(".py") else adapter
    if isinstance(adapter, type(sys)):
        return _module_path(adapter, "")
    module = sys.modules.get(getattr(adapter, "__module__", None) or "")
    name = getattr(adapter, "__qualname__", None)
    if module is None or not isinstance(name, str):
        kind = type(adapter).__qualname__
        raise TypeError(f"adapter is an instance of `{kind}`; pass a class, a module, a function, or the path of one")
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not adapter:
        raise ValueError(
            f"workers cannot import `{name}`, because it is not an attribute of module `{module.__name__}`; "
            "define it at the top level of a module"
        )
    return _module_path(module, name)


def _module_path(module: ModuleType, attribute: str) -> str:
    if module.__name__ != "__main__":
        return f"{module.__name__}:{attribute}"
    # Of a program that `python -m` started.
    spec = module.__spec__
    if spec is not None:
        return f"{spec.name}:{attribute}"
    file = getattr(module, "__file__", None) or ""
    if not file.endswith(".py"):
        raise ValueError(
            "workers cannot import the adapter, because it is defined in an interactive session or in a file without "
            "the suffix `.py`; save it as a file such as `app.py`"
        )
    path = str(Path(file).absolute())
    return f"{path}:{attribute}" if attribute else path
