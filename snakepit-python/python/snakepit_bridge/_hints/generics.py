"""The parameters of generic classes and aliases, and their values."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    #: The values of type variables. That of a `TypeVarTuple` is a tuple.
    Values = dict[Any, Any]


def is_variadic(parameter: Any) -> bool:
    """Return whether a type variable stands for any number of types."""
    return type(parameter).__name__ == "TypeVarTuple"


def bound(parameters: tuple[Any, ...], arguments: tuple[Any, ...]) -> Values:
    """Return the values of parameters. Empty without arguments."""
    if not arguments:
        return {}
    index = next((index for index, parameter in enumerate(parameters) if is_variadic(parameter)), None)
    if index is None:
        return dict(zip(parameters, arguments, strict=False))
    end = len(arguments) - (len(parameters) - index - 1)
    values = dict(zip(parameters[:index], arguments[:index], strict=False))
    values[parameters[index]] = arguments[index:end]
    return {**values, **dict(zip(parameters[index + 1 :], arguments[end:], strict=False))}


def substituted(annotation: Any, values: Values) -> Any:
    """Return a hint with the values of its type variables."""
    if type(annotation).__name__ == "TypeVar":
        return values.get(annotation, annotation)
    parameters = getattr(annotation, "__parameters__", ())
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        # A class itself, of which each parameter has its default.
        return annotation
    if not any(parameter in values for parameter in parameters):
        return annotation
    arguments: list[Any] = []
    for parameter in parameters:
        value = values.get(parameter, parameter)
        if is_variadic(parameter):
            arguments += value if parameter in values else parameter
        else:
            arguments.append(value)
    return annotation[tuple(arguments)]


def values_by_class(cls: Any, arguments: tuple[Any, ...]) -> dict[type, Values]:
    """Return the values of the parameters of a class, and of its generic bases.

    A base has its own, because the same variable may have another value there.
    """
    found = {cls: bound(getattr(cls, "__parameters__", ()), arguments)}
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = getattr(base, "__origin__", base)
        if isinstance(origin, type) and origin.__name__ not in ("Generic", "Protocol", "object"):
            closed = substituted(base, found[cls])
            for owner, values in values_by_class(origin, getattr(closed, "__args__", ())).items():
                found.setdefault(owner, values)
    return found


def values_of_field(cls: Any, name: str, values: dict[type, Values]) -> Values:
    """Return the values of the type variables in the hint of a field, which a base may have declared."""
    generic = {owner: found for owner, found in values.items() if found}
    if len(generic) < 2:
        return next(iter(generic.values()), {})
    return next((generic.get(base, {}) for base in cls.__mro__ if name in _declared(base)), {})


def _declared(cls: type) -> Any:
    """Return the names of the fields that a class itself declares."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    return vars(cls).get("__annotations__", ())


def value_of_alias(alias: Any, arguments: tuple[Any, ...]) -> Any:
    """Return the value of a generic alias, such as `NDArray[np.float32]` in newer versions of numpy."""
    return substituted(alias.__value__, bound(alias.__type_params__, arguments))


def default_of(variable: Any) -> tuple[Any] | None:
    """Return the default of a type variable, in a tuple. ``None`` without one."""
    # Before Python 3.13, `typing_extensions` provides it.
    has_default = getattr(variable, "has_default", None)
    return (variable.__default__,) if has_default is not None and has_default() else None


def unpacked(annotation: Any) -> Any:
    """Return the hint that ``*X`` or ``Unpack[X]`` unpacks. ``None`` for another hint."""
    if getattr(annotation, "__unpacked__", False):
        return annotation.__origin__[annotation.__args__]
    typing = sys.modules.get("typing")
    if typing is not None and getattr(annotation, "__origin__", None) is typing.Unpack:
        return annotation.__args__[0]
    return None
