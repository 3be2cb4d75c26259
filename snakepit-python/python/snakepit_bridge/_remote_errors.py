"""Creates the exceptions for tool failures, of the tool's own class if the program has imported it."""

from __future__ import annotations

import builtins
import functools
import sys
import types
from typing import Any

from snakepit_bridge._failures import type_name
from snakepit_bridge.errors import RemoteTraceback, ToolFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: The parameters of `ToolFailed` by the field name in the failure.
_PARAMETERS = {
    "type": "type",
    "message": "message",
    "traceback": "traceback",
    "code": "code",
    "data": "data",
    "args": "exception_args",
    "attributes": "attributes",
    "omitted": "omitted",
    "notes": "notes",
}
#: The fields of a failure that are other exceptions.
_LINKS = ("cause", "context", "exceptions")


#: Methods by which a class runs its own code while an object is created or dropped.
_HOOKS = ("__new__", "__init_subclass__", "__setattr__", "__getattribute__", "__del__")
#: The flag of types that a program created, unlike those of the interpreter.
_HEAP_TYPE = 1 << 9
#: The maximum length of a class name to look up, because the time grows with its square.
_MAX_NAME = 1024
#: Descriptors of the interpreter, which store a value without running code.
_STORES = (types.MemberDescriptorType, types.GetSetDescriptorType)

#: The key of links that marks an exception to which another one is linked. Only the latter shows the traceback.
_IS_LINKED = "is_linked"


def create(
    failure: Mapping[str, Any], classes: tuple[type[Exception], ...] | None = None, *, is_linked: bool = False
) -> ToolFailed:
    """Return the exception for a failure, whose class is a subclass of the tool's own class if possible.

    Args:
        failure: The fields of the failure by name, as in ``ToolFailure.details_json`` of the protocol.
        classes: The classes to use. ``None`` stands for all classes of imported modules.
        is_linked: Whether another exception is linked to this one.
    """
    links = {name: failure[name] for name in _LINKS if failure.get(name)}
    if is_linked:
        links[_IS_LINKED] = True
    known = {parameter: failure[name] for name, parameter in _PARAMETERS.items() if name in failure}
    failed = ToolFailed(**{"type": "", "message": "", **known}, links=links, classes=classes)
    return _of_own_class(failed, classes) or failed


def link(error: ToolFailed, links: Mapping[str, Any], classes: tuple[type[Exception], ...] | None) -> None:
    """Set the cause and the context of an exception. The last one of this chain shows the traceback of the tool."""
    for name in ("cause", "context"):
        node = links.get(name)
        if isinstance(node, dict):
            setattr(error, f"__{name}__", create(node, classes, is_linked=True))
    if error.traceback and not links.get(_IS_LINKED):
        last: BaseException = error
        while (following := last.__cause__ or last.__context__) is not None:
            last = following
        last.__cause__ = RemoteTraceback(error.traceback)


def _of_own_class(failed: ToolFailed, classes: tuple[type[Exception], ...] | None) -> ToolFailed | None:
    """Return the exception with a class that derives from the tool's own class and from `ToolFailed`."""
    nodes = failed._links.get("exceptions", ())
    members = [create(node, classes, is_linked=True) for node in nodes if isinstance(node, dict)]
    kind = _find(failed.type, classes)
    if classes is None:
        kind = _without_code(kind)
    if members and (kind is None or not issubclass(kind, BaseExceptionGroup)):
        kind = ExceptionGroup
    if kind is None or any(base is kind for base in ToolFailed.__mro__):
        return None
    args = failed.exception_args
    if issubclass(kind, BaseExceptionGroup):
        if not members:
            return None
        text = args[0] if args and isinstance(args[0], str) else failed.message
        args = (text, members)
    # A class that the program listed may run its own code.
    try:
        error = _instance(kind, args)
        _adopt(error, failed)
    except Exception:
        return None
    return error


def _instance(kind: type[Exception], args: tuple[Any, ...]) -> ToolFailed:
    """Return an exception without calling `__init__`, whose parameters differ from ``args``."""
    subclass: type[ToolFailed] = _subclass(kind)  # type: ignore[arg-type]
    error = kind.__new__(subclass, *args)
    if not isinstance(error, subclass):
        raise TypeError
    if not isinstance(error, BaseExceptionGroup):
        _set(error, "args", args)
    return error


def _adopt(error: ToolFailed, failed: ToolFailed) -> None:
    """Copy the fields of a failure. The attributes of the tool's own class take precedence."""
    own = _own_class(error)
    state = _state(error)
    for name, value in _state(failed).items():
        if name.startswith("_") or _class_attribute(own, name) is None:
            state[name] = value
    state["_failure"] = failed
    for name, value in failed.attributes.items():
        # Names with an underscore belong to the class and to Python.
        if not name.startswith("_"):
            _set(error, name, value)
    # Both exceptions share their links, because creating them twice would double the work with each level of a chain.
    if failed.__cause__ is not None:
        _set(error, "__cause__", failed.__cause__)
    _set(error, "__context__", failed.__context__)


def _state(error: BaseException) -> dict[str, Any]:
    """Return the attributes of an exception. A class may override ``__dict__``."""
    state: dict[str, Any] = vars(BaseException)["__dict__"].__get__(error)
    return state


def _set(error: BaseException, name: str, value: Any) -> None:
    """Set an attribute without running code of the class. Leaves a property of the class as it is."""
    own = vars(BaseException).get(name) or _class_attribute(type(error), name)
    if isinstance(own, _STORES):
        own.__set__(error, value)
    elif not hasattr(type(own), "__set__"):
        _state(error)[name] = value


def _class_attribute(kind: type, name: str) -> Any:
    """Return the attribute of a class as the class stores it, or ``None``."""
    return next((_namespace(base)[name] for base in _bases(kind) if name in _namespace(base)), None)


def _bases(kind: type) -> tuple[type, ...]:
    """Return the bases of a class. A metaclass may override ``__mro__``."""
    bases: tuple[type, ...] = vars(type)["__mro__"].__get__(kind)
    return bases


def _namespace(owner: object) -> Any:
    """Return the attributes of a class or module. Other ways to them may run code, such as that of a lazy module."""
    for kind in (type, types.ModuleType):
        if issubclass(type(owner), kind):
            return vars(kind)["__dict__"].__get__(owner)
    return {}


def _without_code(kind: type[Exception] | None) -> type[Exception] | None:
    """Return the nearest base whose objects can be created without running code of the program."""
    if kind is None:
        return None
    bases = _bases(kind)
    for index, base in enumerate(bases):
        if not issubclass(base, Exception):
            return None
        if not any(_runs_code(parent) for parent in bases[index:]):
            return base
    return None


def _runs_code(kind: type) -> bool:
    if type(kind) is not type:
        return True
    return bool(kind.__flags__ & _HEAP_TYPE) and any(hook in _namespace(kind) for hook in _HOOKS)


def _own_class(error: ToolFailed) -> type[Exception]:
    found: type[Exception] = type(error).__bases__[0]
    return found


@functools.lru_cache(maxsize=256)
def _subclass(kind: type[Exception]) -> type[ToolFailed]:
    """Create a class whose objects are exceptions of `kind` and `ToolFailed`. It looks like `kind` in a traceback."""
    namespace = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__str__": lambda self: self._failure.message,
        "__reduce__": _reduce,
        "__setstate__": _set_state,
        "failure": property(lambda self: self._failure),
        # The tool ran, even if exceptions of its class usually state otherwise.
        "may_have_run": True,
        "retry_after": None,
    }
    return types.new_class(kind.__name__, (kind, ToolFailed), exec_body=lambda created: created.update(namespace))


def _set_state(error: ToolFailed, state: dict[str, Any] | None) -> None:
    _state(error).update(state or {})


def _reduce(error: ToolFailed) -> tuple[Any, ...]:
    failed = error.failure
    state = {name: value for name, value in _state(error).items() if value is not failed}
    return _restore, (_own_class(error), error.args, failed), state


def _restore(kind: type[Exception], args: tuple[Any, ...], failed: ToolFailed) -> ToolFailed:
    error = _instance(kind, args)
    _adopt(error, failed)
    return error


def _find(name: str, classes: tuple[type[Exception], ...] | None) -> type[Exception] | None:
    """Return the class with this name, as `type_name` returns it. Imports nothing."""
    if classes is not None:
        return next((kind for kind in classes if _is_named(kind, name)), None)
    if len(name) > _MAX_NAME:
        return None
    if "." not in name:
        builtin: Any = vars(builtins).get(name)
        return builtin if _is_usable(builtin) else None
    module, _, rest = name.rpartition(".")
    path = [rest]
    while module:
        if module in sys.modules:
            found: Any = sys.modules[module]
            for part in path:
                found = _namespace(found).get(part)
            # An alias, or an attribute of another meaning, has another name.
            return found if _is_usable(found) and _stored_name(found) == name else None
        module, _, part = module.rpartition(".")
        path.insert(0, part)
    return None


def _is_named(kind: type[Exception], name: str) -> bool:
    if type_name(kind) == name:
        return True
    # The worker imports the module that is the main program here.
    return kind.__module__ == "__main__" and name.endswith(f".{kind.__qualname__}")


def _is_usable(kind: object) -> bool:
    """Return whether the client may raise a class. The errors of this package have another meaning there."""
    # `isinstance` may run code of the object.
    if not issubclass(type(kind), type) or not issubclass(kind, Exception):  # type: ignore[arg-type]
        return False
    if issubclass(kind, (StopIteration, StopAsyncIteration)):  # type: ignore[arg-type]
        return False
    name = _stored_name(kind)  # type: ignore[arg-type]
    return not name.startswith("snakepit_bridge.errors.") or name == "snakepit_bridge.errors.ToolError"


def _stored_name(kind: type) -> str:
    """Return what `type_name` returns, without the properties of a metaclass."""
    module = _namespace(kind).get("__module__")
    name: str = vars(type)["__qualname__"].__get__(kind)
    return name if module == "__main__" else f"{module}.{name}"
