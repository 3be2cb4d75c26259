"""Reads signatures and annotations of ordinary functions without `inspect` and `typing`.

Importing both would take most of a worker's start time and memory. Other functions fall back to them.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FunctionType
    from typing import Any, TypeGuard

#: The kinds of parameters, with the numbers of `inspect`.
POSITIONAL_ONLY, POSITIONAL_OR_KEYWORD, VAR_POSITIONAL, KEYWORD_ONLY, VAR_KEYWORD = range(5)

#: The default or annotation of a parameter that has none.
EMPTY: Any = object()
#: The default of an argument that may be missing, and then has no value.
ABSENT: Any = object()

#: The type of functions that `def` creates.
FUNCTION = type(lambda: None)
#: Attributes with which a function presents the signature of another.
_SIGNATURE_OVERRIDES = frozenset({"__signature__", "__text_signature__", "__wrapped__"})

# Flags of code objects: `inspect.CO_...`.
_HAS_VAR_POSITIONAL = 0x04
_HAS_VAR_KEYWORD = 0x08
_GENERATOR = 0x20
_COROUTINE = 0x80
_ASYNC_GENERATOR = 0x200


class Parameter:
    """One parameter of a function."""

    __slots__ = ("default", "kind", "name")

    def __init__(self, name: str, kind: int, default: Any = EMPTY) -> None:
        self.name = name
        self.kind = kind
        self.default = default


class Unresolved:
    """An annotation that cannot be evaluated."""

    __slots__ = ("problem",)

    def __init__(self, text: str, error: Exception) -> None:
        #: A predicate for messages.
        self.problem = f"is `{text}`, which cannot be evaluated: {' '.join(str(error).split())}"
        if isinstance(error, NameError):
            self.problem += "; define or import it at module level, outside of `if TYPE_CHECKING`"


def parameters_of(function: Callable[..., Any]) -> list[Parameter]:
    """Return the parameters in the order of the signature.

    Raises:
        TypeError: The object cannot be called.
        ValueError: The signature is not available.
    """
    if not is_ordinary(function):
        import inspect

        return [
            Parameter(p.name, p.kind, EMPTY if p.default is p.empty else p.default)
            for p in inspect.signature(function).parameters.values()
        ]
    code = function.__code__
    # `co_varnames` holds positional parameters, keyword-only ones, `*args` and `**kwargs`, and then local variables.
    ends = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    positional, by_name = code.co_varnames[: ends[0]], code.co_varnames[ends[0] : ends[1]]
    rest = iter(code.co_varnames[ends[1] :])

    defaults = function.__defaults__ or ()
    padded = (*[EMPTY] * (len(positional) - len(defaults)), *defaults)
    parameters = [
        Parameter(name, POSITIONAL_ONLY if index < code.co_posonlyargcount else POSITIONAL_OR_KEYWORD, default)
        for index, (name, default) in enumerate(zip(positional, padded, strict=True))
    ]
    if code.co_flags & _HAS_VAR_POSITIONAL:
        parameters.append(Parameter(next(rest), VAR_POSITIONAL))
    named_defaults = function.__kwdefaults__ or {}
    parameters += [Parameter(name, KEYWORD_ONLY, named_defaults.get(name, EMPTY)) for name in by_name]
    if code.co_flags & _HAS_VAR_KEYWORD:
        parameters.append(Parameter(next(rest), VAR_KEYWORD))
    return parameters


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the evaluated annotations. Those that cannot be evaluated are :class:`Unresolved`."""
    function = underlying(function)
    plain = _plain_annotations(function)
    return _typed_annotations(function) if plain is None else plain


def is_generator_function(function: Callable[..., Any]) -> bool:
    """Return whether a function contains ``yield``, so that it always streams."""
    if is_ordinary(function):
        return bool(function.__code__.co_flags & (_GENERATOR | _ASYNC_GENERATOR))
    import inspect

    function = inspect.unwrap(function)
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def is_plain_function(function: Callable[..., Any]) -> bool:
    """Return whether a function is neither a coroutine function nor an async generator function."""
    if is_ordinary(function):
        return not function.__code__.co_flags & (_COROUTINE | _ASYNC_GENERATOR)
    import inspect

    function = inspect.unwrap(underlying(function))
    # Looks up `__call__` in the class, because an attribute `__call__` of the object need not be the method.
    candidates = (function, vars(type(function)).get("__call__"))
    return not any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in candidates)


def underlying(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function inside a `partial`, which has neither its annotations nor its docstring."""
    functools = sys.modules.get("functools")
    while functools is not None and isinstance(function, functools.partial):
        function = function.func
    return function


def place_of(function: Callable[..., Any]) -> str:
    """Return the file and the line of a function, for messages. Empty if they are unknown."""
    import inspect

    try:
        code = getattr(inspect.unwrap(underlying(function)), "__code__", None)
    except ValueError:  # A cycle of wrappers.
        return ""
    return "" if code is None else f" ({code.co_filename}:{code.co_firstlineno})"


def is_ordinary(function: Callable[..., Any]) -> TypeGuard[FunctionType]:
    """Return whether a function was created by `def` and is not a wrapper that presents another signature."""
    return type(function) is FUNCTION and _SIGNATURE_OVERRIDES.isdisjoint(vars(function))


def _plain_annotations(function: Callable[..., Any]) -> dict[str, Any] | None:
    """Evaluate annotations that do not use `typing`. Return ``None`` if `typing` is needed."""
    if "typing" in sys.modules or not is_ordinary(function) or getattr(function, "__type_params__", None):
        return None
    # Nested strings, as in `list["Item"]`, may remain. They only matter inside objects of `typing`.
    annotations = {}
    try:
        # Python 3.14 evaluates annotations on access.
        declared = function.__annotations__
    except Exception:
        return None
    for name, annotation in declared.items():
        try:
            value = eval(annotation, function.__globals__) if isinstance(annotation, str) else annotation  # noqa: S307
        except Exception as error:
            value = Unresolved(annotation, error)
        if isinstance(value, str):  # A string inside a string, which `typing` evaluates.
            return None
        annotations[name] = value
    return annotations


def _typed_annotations(function: Callable[..., Any]) -> dict[str, Any]:
    import inspect
    import typing

    function = inspect.unwrap(function)
    if not hasattr(function, "__annotations__"):
        # A callable object.
        function = type(function).__call__
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # One annotation cannot be evaluated. The others can.
        namespace = namespace_of(function)
        annotations: dict[str, Any] = {}
        for name, annotation in _declared(function).items():
            try:
                annotations[name] = eval(annotation, namespace) if isinstance(annotation, str) else annotation  # noqa: S307
            except Exception as error:
                annotations[name] = Unresolved(annotation, error)
        return annotations


def _declared(function: Callable[..., Any]) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        # The attribute evaluates all annotations.
        import annotationlib

        return annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)
    declared: dict[str, Any] = getattr(function, "__annotations__", {})
    return declared


def namespace_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the global variables and type parameters of a function, with which its annotations are evaluated."""
    function = underlying(function)
    while True:
        inner = getattr(function, "__wrapped__", None) or getattr(function, "__func__", None)
        if inner is None:
            break
        function = inner
    namespace: dict[str, Any] | None = getattr(function, "__globals__", None)
    if namespace is None:
        # A callable object.
        namespace = getattr(type(function).__call__, "__globals__", {}) if callable(function) else {}
    parameters = getattr(function, "__type_params__", ())
    return {**namespace, **{parameter.__name__: parameter for parameter in parameters}} if parameters else namespace
