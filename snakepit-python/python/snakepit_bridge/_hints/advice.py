"""The errors of hints that are not supported, with the hints to use instead."""

from __future__ import annotations

# `_checked` explains why this is not imported from `collections.abc`.
import _collections_abc as abc
import sys

from snakepit_bridge._hints.base import HintError, type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAME = "pass its name, for example as a `Literal`"
_ABSTRACT = "use a concrete type, such as `list` or `dict`"

#: Advice for classes, by name.
_ADVICE: dict[str, str] = {
    "builtins.type": _NAME,
    "collections.abc.Callable": _NAME,
    "collections.abc.ByteString": "use `bytes`",
    "array.array": "use `bytes`, or an array of numpy",
    "re.Pattern": "use `str`, and compile it in the tool",
    "re.Match": "use the groups of the match",
    "numpy.complex64": "use an array",
    "numpy.complex128": "use an array",
    "numpy.datetime64": "use `datetime`",
    "numpy.timedelta64": "use `timedelta`",
}

#: Hints of streams and of awaitables, which are meant for the whole result.
_WHOLE_RESULTS = (
    *(abc.Iterator, abc.Generator, abc.AsyncIterable, abc.AsyncIterator, abc.AsyncGenerator),
    *(abc.Awaitable, abc.Coroutine),
)


def unsupported(annotation: Any, origin: Any) -> HintError:
    """Return the error for a hint whose values cannot be sent. ``origin`` is its class, if it has one."""
    shown = f"is `{display(annotation)}`, which"
    if type(annotation).__name__ in ("ParamSpecArgs", "ParamSpecKwargs"):
        return HintError(
            f"{shown} stands for the parameters of another function, which a decorator hides; use `functools.wraps` "
            "in the decorator"
        )
    if type(annotation).__name__ == "ParamSpec":
        return HintError(f"{shown} stands for parameters; use types")
    if not isinstance(origin, type):
        return HintError(_special(annotation, origin, shown))
    if origin in _WHOLE_RESULTS:
        argument = next(iter(getattr(annotation, "__args__", ())), None)
        item = "" if argument is None else f"[{display(argument)}]"
        return HintError(f"{shown} only has a meaning as the whole hint of a result; use `list{item}`")
    advice = _ADVICE.get(f"{origin.__module__}.{origin.__name__}")
    if advice is None and origin.__module__ == "collections.abc":
        advice = _ABSTRACT
    if advice is None and getattr(origin, "_is_protocol", False):
        advice = "use a class that implements it"
    if advice is None and _is_file(origin):
        advice = "use `bytes`, or the `Path` of a file"
    if advice is None:
        # `converter` itself is not imported, because most workers need none.
        advice = f"register a converter with snakepit_bridge.converter({origin.__qualname__})"
    return HintError(f"{shown} has no JSON form; {advice}")


def unhashable_part(annotation: Any) -> Any:
    """Return the part of a hint that cannot be hashed, such as the list in ``dict[str, [int]]``."""
    for argument in getattr(annotation, "__args__", ()):
        try:
            hash(argument)
        except TypeError:
            return unhashable_part(argument)
    return annotation


def _special(annotation: Any, origin: Any, shown: str) -> str:
    """Return the problem of a hint that is not a class."""
    name = getattr(annotation, "_name", None) or getattr(origin, "_name", None)
    if name == "Self":
        return f"{shown} is only the class of a field; name the class"
    if name in ("ClassVar", "Final", "Required", "NotRequired", "ReadOnly"):
        return f"{shown} needs a type; use `{name}[..]`"
    if name == "Unpack" or type(annotation).__name__ == "TypeVarTuple":
        return f"{shown} only has a meaning inside of `tuple[..]`; use `tuple` or `list`"
    if isinstance(annotation, bool | int | float | bytes | list | tuple | dict | set):
        return f"{shown} is a value; use a type, or `Literal[..]` for a choice of values"
    return f"{shown} has no JSON form; use a type"


def _is_file(origin: type) -> bool:
    io = sys.modules.get("io")
    typing = sys.modules.get("typing")
    return (io is not None and issubclass(origin, io.IOBase)) or (typing is not None and issubclass(origin, typing.IO))


def display(annotation: Any) -> str:
    """Return the source form of a hint, for messages."""
    is_class = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    return type_name(annotation) if is_class else repr(annotation)
