"""Adapter classes for the functions of a module."""

from __future__ import annotations

from snakepit_bridge import _signatures
from snakepit_bridge._tool_metadata import METADATA_ATTRIBUTE
from snakepit_bridge.base_adapter import FUNCTIONS_ATTRIBUTE, TOOL_ATTRIBUTE, attributes_of, own_attribute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

#: The functions that the worker calls when it starts and ends. They are not tools.
HOOKS = ("lifespan", "process_init", "process_exit")

#: The numbers that a module may set for all of its tools, as an adapter class does.
_NUMBERS = ("concurrency", "threads")

#: The prefix of tool attributes, so that a tool may have the name of an adapter method.
_PREFIX = "tool "


class FunctionAdapter:
    """The base class of adapters whose tools are functions of a module."""


def is_function(value: object) -> bool:
    """Return whether a value is a function, or a callable that wraps one or is marked as a tool."""
    if isinstance(value, type) or not callable(value):
        return False
    return (
        isinstance(value, _signatures.FUNCTION) or own_attribute(value, "__wrapped__") is not None or _is_marked(value)
    )


def adapter_of_module(module: ModuleType) -> type:
    """Return an adapter for the tools of a module, or the only adapter class that the module defines.

    Raises:
        TypeError: The module has no tools, the choice of tools is ambiguous, or a name in ``__all__`` is missing.
    """
    functions = dict(_functions_of(module))
    marked = {name: function for name, function in functions.items() if _is_marked(function)}
    classes = _adapters_of(module)
    names = ", ".join(f"`{module.__name__}:{adapter.__name__}`" for adapter in classes)
    if marked and classes:
        raise TypeError(f"it has functions marked with @tool and the adapter {names}; serve them from two modules")
    if len(classes) > 1:
        raise TypeError(f"it defines several adapters; name one of {names}")
    if classes and not marked:
        return classes[0]
    if not functions:
        imported = [name for name, value in vars(module).items() if is_function(value) and _is_marked(value)]
        if imported:
            shown = ", ".join(f"`{name}`" for name in imported[:3]) + (", .." if len(imported) > 3 else "")
            raise TypeError(f"its tools {shown} are defined in other modules; list them in `__all__` to serve them")
        hidden = next(filter(lambda name: _is_hidden(module, name), vars(module)), None)
        if hidden is not None:
            wrapper = f"{vars(module)[hidden].__module__}.{vars(module)[hidden].__qualname__}"
            raise TypeError(
                f"it has no tools; its function `{hidden}` is `{wrapper}`, which a decorator returned; use "
                "`functools.wraps` in the decorator"
            )
        raise TypeError(
            "it has no tools; define a function whose name does not begin with an underscore, or an adapter class"
        )
    return _adapter(module, marked or functions)


def _is_hidden(module: ModuleType, name: str) -> bool:
    """Return whether a name is a function that a decorator of another module returned without ``functools.wraps``."""
    value = vars(module)[name]
    if name.startswith("_") or not isinstance(value, _signatures.FUNCTION):
        return False
    return "<locals>" in value.__qualname__ and value.__module__ != module.__name__


def adapter_of_function(module: ModuleType, name: str, function: Callable[..., Any]) -> type:
    """Return an adapter with one function of a module."""
    return _adapter(module, {name: function})


def _adapter(module: ModuleType, functions: dict[str, Callable[..., Any]]) -> type:
    namespace: dict[str, Any] = {"__module__": module.__name__, "__doc__": module.__doc__}
    namespace[FUNCTIONS_ATTRIBUTE] = {_PREFIX + name: (name, function) for name, function in functions.items()}
    namespace |= {_PREFIX + name: staticmethod(function) for name, function in functions.items()}
    for hook in HOOKS:
        function = vars(module).get(hook)
        if function is not None:
            namespace[hook] = staticmethod(function)
    for name in _NUMBERS:
        value = vars(module).get(name)
        # Other values are unrelated, such as a list of threads or an imported module.
        if isinstance(value, int | float | str):
            namespace[name] = value
    return type(module.__name__.rpartition(".")[2], (FunctionAdapter,), namespace)


def _functions_of(module: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Iterate over the functions in ``__all__``, or over the public functions that the module defines."""
    # `vars` avoids the module's `__getattr__`, which may create or reject any name.
    listed = vars(module).get("__all__")
    for name in list(vars(module)) if listed is None else listed:
        try:
            value: Any = getattr(module, name)
        except AttributeError:
            raise TypeError(
                f"it has no `{name}`, which `__all__` lists; define it, or remove it from `__all__`"
            ) from None
        except Exception as error:
            raise TypeError(f"its attribute `{name}` raises {type(error).__qualname__}: {error}") from error
        if name in HOOKS or not (is_function(value) if listed is None else _is_listed_tool(value)):
            continue
        # A partial marked as a tool has the module of its class.
        is_own = own_attribute(value, "__module__") == module.__name__ or type(value).__name__ == "partial"
        if listed is not None or (is_own and not name.startswith("_")):
            yield name, value


def _is_listed_tool(value: object) -> bool:
    """Return whether a value in ``__all__`` is a tool: any callable, except classes, and the hints of `typing`."""
    if isinstance(value, type) or not callable(value):
        return False
    return not any(own_attribute(value, name) is not None for name in ("__origin__", "__supertype__"))


def _adapters_of(module: ModuleType) -> list[type]:
    """Return the public classes with tools that the module defines, without bases of other such classes."""
    members = [value for name, value in vars(module).items() if isinstance(value, type) and not name.startswith("_")]
    # A metaclass may raise when the attribute is read.
    own = [
        member
        for member in dict.fromkeys(members)
        if vars(member).get("__module__") == module.__name__ and _has_tools(member)
    ]
    return [member for member in own if not any(member in other.__mro__[1:] for other in own)]


def _has_tools(adapter: type) -> bool:
    if callable(getattr(adapter, "execute_tool", None)):
        return True
    return any(_is_marked(member) for base in adapter.__mro__ for member in vars(base).values())


def _is_marked(member: object) -> bool:
    attributes = attributes_of(member)
    return TOOL_ATTRIBUTE in attributes or METADATA_ATTRIBUTE in attributes
