"""Calls functions when a module of the standard library is imported, so that the worker's start need not import it."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def on_import(name: str, function: Callable[[ModuleType], None]) -> None:
    """Call a function with a module, now if the module is imported, otherwise right after its import."""
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        function(module)
        return
    _finder.functions[name] = function
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


class _Finder:
    """Finds no modules itself. Wraps the loaders of those that have a function."""

    def __init__(self) -> None:
        self.functions: dict[str, Callable[[ModuleType], None]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.functions:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None

    def imported(self, module: ModuleType) -> None:
        """Call the function of a module that was imported. A spec that was found need not lead to an import."""
        # The finder stays in `sys.meta_path`. If it were removed, a thread that iterates over the list at this moment
        # would skip the next finder, and could miss a module.
        function = self.functions.pop(module.__name__, None)
        if function is not None:
            function(module)


class _Loader:
    """Loads a module as another loader does, and then calls the function of the finder."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        # Such as `get_source`, for a caller that only looks for the module.
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._finder.imported(module)


_finder = _Finder()
