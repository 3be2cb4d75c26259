"""Imports the adapter that a path names: a class, the functions of a module, or one function."""

from __future__ import annotations

import os
import sys

from snakepit_bridge._plan import AdapterError, one_line
from snakepit_bridge.base_adapter import own_attribute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

#: The accepted paths, for messages.
FORMS = "`module`, `module.path:`, `module.path:Class`, `module.path:function` or `path/to/file.py`"


def load(path: str) -> type:
    """Import an adapter.

    ``path`` is one of

    - ``module.path:Class`` or ``module.path.Class``,
    - ``module.path:function``, for one function,
    - ``module.path:`` or ``module``, for the tools of a module,
    - ``path/to/file.py``, alone or with ``:Class`` or ``:function``.

    Raises:
        AdapterError: It was not found or has no tools, or importing it raised the cause of this error.
    """
    name, separator, attribute = path.partition(":")
    if name.endswith(".py"):
        module = _import_file(path, name)
    else:
        if not separator and "." in name:
            name, _, attribute = name.rpartition(".")
        if not name or name.startswith(".") or "/" in name:
            raise AdapterError(f"adapter `{path}` does not name a module; write it as {FORMS}")
        module = _import(path, name)
    adapter: Any = _attribute(path, module, attribute) if attribute else module
    if isinstance(adapter, type):
        return _checked(adapter)
    # Not imported at startup, because most workers serve a class.
    from snakepit_bridge import _function_adapter

    try:
        if adapter is module:
            return _checked(_function_adapter.adapter_of_module(module))
        if _function_adapter.is_function(adapter):
            return _function_adapter.adapter_of_function(module, attribute.rpartition(".")[2], adapter)
    except TypeError as error:
        raise AdapterError(f"module `{module.__name__}` cannot be served: {error}") from None
    # Imported late to keep the start fast.
    from snakepit_bridge import _failures

    kind = _failures.type_name(type(adapter))
    raise AdapterError(
        f"adapter `{path}` is neither a class nor a function, but of type `{kind}`; module `{module.__name__}` "
        f"defines {_names_of(module)}"
    )


def _import_file(path: str, file: str) -> ModuleType:
    """Import a file as a module, after its directory, or that of its package, became the first on ``sys.path``."""
    file = os.path.realpath(file)
    if not os.path.isfile(file):  # noqa: PTH113  `pathlib` would delay the start.
        raise AdapterError(f"adapter `{path}` does not exist: there is no file `{file}`")
    directory, name = os.path.split(file.removesuffix(".py"))
    while os.path.isfile(os.path.join(directory, "__init__.py")):  # noqa: PTH113, PTH118
        directory, package = os.path.split(directory)
        name = f"{package}.{name}"
    if directory not in sys.path[:1]:
        sys.path.insert(0, directory)
    module = _import(path, name)
    found = getattr(module, "__file__", None)
    if found is None or os.path.realpath(found) != file:
        raise AdapterError(
            f"adapter `{path}` cannot be imported: its name `{name}` belongs to another module, "
            f"{found or 'which is built in'}; rename the file"
        )
    return module


def _import(path: str, name: str) -> ModuleType:
    try:
        __import__(name)
        return sys.modules[name]
    except ModuleNotFoundError as error:
        fix = f"install it for {sys.executable}, or add its directory to PYTHONPATH"
        raise AdapterError(f"adapter `{path}` cannot be imported: {_encodable(str(error))}; {fix}") from error
    except BaseException as error:
        raise AdapterError(f"adapter `{path}` cannot be imported: {_described(error)}") from error


def _described(error: BaseException) -> str:
    """Return the type and the message of an exception on one line."""
    from snakepit_bridge import _failures

    return _encodable(one_line(f"{_failures.type_name(type(error))}: {error}"))


def _encodable(text: str) -> str:
    """Replace lone surrogates, which the log of the host cannot contain, with escapes."""
    return text.encode(errors="backslashreplace").decode()


def _attribute(path: str, module: ModuleType, attribute: str) -> Any:
    found: Any = module
    owner = f"module `{module.__name__}`"
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise AdapterError(
                f"adapter `{path}` does not exist: {owner} has no attribute `{name}`; module `{module.__name__}` "
                f"defines {_names_of(module)}"
            ) from error
        except Exception as error:
            raise AdapterError(
                f"adapter `{path}` cannot be loaded: the attribute `{name}` of {owner} raises {_described(error)}"
            ) from error
        owner = f"`{name}`"
    return found


def _checked(adapter: type) -> type:
    """Return an adapter class whose name and module can be read."""
    for name in ("__name__", "__qualname__", "__module__"):
        try:
            getattr(adapter, name)
        except Exception as error:
            own_name = type.__getattribute__(adapter, "__name__")
            raise AdapterError(
                f"adapter `{own_name}` cannot be used: its attribute `{name}` raises {_described(error)}"
            ) from error
    return adapter


def _names_of(module: ModuleType) -> str:
    """Return the classes and functions that a module defines."""
    own = (
        name
        for name, member in vars(module).items()
        if own_attribute(member, "__module__") == module.__name__ and callable(member) and not name.startswith("_")
    )
    return ", ".join(f"`{name}`" for name in own) or "no class and no function"


def class_of(adapter: Any) -> type:
    """Return the class of an adapter: a class, a path, a module, or a function of a module.

    Raises:
        AdapterError: It has no tools, or was not found.
        TypeError: It is an object of another kind.
    """
    if isinstance(adapter, type):
        return _checked(adapter)
    if isinstance(adapter, str):
        return load(adapter)
    from snakepit_bridge import _function_adapter

    try:
        if isinstance(adapter, type(sys)):
            return _checked(_function_adapter.adapter_of_module(adapter))
        if _function_adapter.is_function(adapter):
            return _function_adapter.adapter_of_function(sys.modules[adapter.__module__], adapter.__name__, adapter)
    except TypeError as error:
        raise AdapterError(f"module `{getattr(adapter, '__name__', '')}` cannot be served: {error}") from None
    kind = type(adapter).__qualname__
    raise TypeError(f"adapter is an instance of `{kind}`; pass the class itself, because each call creates an instance")
