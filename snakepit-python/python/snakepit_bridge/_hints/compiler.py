"""Compiles type annotations to `Hint` objects, which read, write and describe values."""

from __future__ import annotations

import sys

from snakepit_bridge._hints.advice import display, unhashable_part, unsupported
from snakepit_bridge._hints.base import ANY, Hint, HintError, Schemas
from snakepit_bridge._hints.collection_types import Derived, base_of, collection
from snakepit_bridge._hints.containers import Items, Positions
from snakepit_bridge._hints.generics import (
    bound,
    default_of,
    is_variadic,
    substituted,
    unpacked,
    values_by_class,
)
from snakepit_bridge._hints.scalars import (
    Binary,
    Boolean,
    Choice,
    Enumeration,
    Flags,
    Float,
    Integer,
    Null,
    Text,
    is_buffer,
)
from snakepit_bridge._hints.unions import Union
from snakepit_bridge._signatures import EMPTY, Unresolved

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from snakepit_bridge._hints.generics import Values

_PLAIN: dict[Any, Hint] = {
    EMPTY: ANY,
    object: ANY,
    bool: Boolean(),
    int: Integer(),
    float: Float(),
    str: Text(),
    None: Null(),
    type(None): Null(),
}

_BINARY = (bytes, bytearray, memoryview)

#: The packages of classes with a wire form, see `_hints.packages`.
_PACKAGES = frozenset({"pandas", "polars", "pyarrow", "torch", "PIL", "duckdb", "_duckdb"})

#: The deepest nesting of classes in each other.
_MAX_DEPTH = 64

#: The type of `int | str`.
_UNION = type(int | None)

#: The special forms that say more about a field than its type.
_QUALIFIERS = frozenset({"Final", "ClassVar", "Required", "NotRequired", "ReadOnly"})


class ForwardHint(Hint):
    """Placeholder for a recursive hint whose target is still being compiled."""

    def __init__(self, name: str) -> None:
        self.target: Hint = ANY
        self._name = name

    def unwrapped(self) -> Hint:
        return self.target.unwrapped()

    def read(self, value: Any) -> Any:
        return self.target.read(value)

    def write(self, value: Any) -> Any:
        return self.target.write(value)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return schemas.reference(self, self._name, lambda _: self.target.schema(schemas))


class Compiler:
    """Compiles the hints of one tool.

    Args:
        namespace: The globals in which string annotations are evaluated.
    """

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        #: The compiled hints of classes and aliases. A recursive class or alias finds its own hint here.
        self._known: dict[Any, Hint] = {}
        self._variables: Values = {}
        #: The classes that are being compiled.
        self._owners: list[Any] = []

    def top_level(self, annotation: Any) -> Hint:
        """Compile the annotation of a parameter or result.

        Raises:
            HintError: The annotation is not supported.
        """
        if _is_binary(annotation):
            return Binary(annotation, is_whole=True)
        if _is_union(annotation) and any(map(_is_binary, annotation.__args__)) and not _is_array_like(annotation):
            return Union([self.top_level(member) for member in annotation.__args__])
        return self.hint(annotation)

    def hint(self, annotation: Any) -> Hint:
        """Compile a nested annotation.

        Raises:
            HintError: The annotation is not supported.
        """
        if isinstance(annotation, Unresolved):
            raise HintError(annotation.problem)
        if isinstance(annotation, str):
            return self._evaluated(annotation)
        try:
            plain = _PLAIN.get(annotation)
        except TypeError:  # Unhashable.
            raise unsupported(unhashable_part(annotation), None) from None
        if plain is not None:
            return plain
        special = self._special(annotation)
        if special is not None:
            return special
        origin = getattr(annotation, "__origin__", annotation)
        arguments: tuple[Any, ...] = getattr(annotation, "__args__", ()) or ()
        if not isinstance(origin, type):
            raise unsupported(annotation, origin)
        return self._generic(annotation, origin, arguments)

    def within(self, annotation: Any, values: Values) -> Hint:
        """Compile an annotation whose type variables have these values.

        Raises:
            HintError: The annotation is not supported.
        """
        outer, self._variables = self._variables, values
        try:
            return self.hint(annotation)
        finally:
            self._variables = outer

    def _special(self, annotation: Any) -> Hint | None:
        """Compile a special form of `typing`. Return ``None`` for a class."""
        if _is_array_like(annotation):
            return self.hint(sys.modules["numpy"].ndarray)
        if _is_union(annotation):
            return self._union(annotation.__args__)
        typing = sys.modules.get("typing")
        kind = type(annotation).__name__
        if kind == "TypeAliasType":
            return self._recursive(annotation, lambda: self._alias(annotation, ()))
        if typing is None:
            return None
        if annotation is typing.Any:
            return ANY
        if annotation is getattr(typing, "LiteralString", None):
            return _PLAIN[str]
        if _is_never(annotation):
            raise HintError(f"is `{display(annotation)}`, which no value has")
        if isinstance(annotation, typing.ForwardRef):
            return self._evaluated(annotation.__forward_arg__)
        if isinstance(annotation, typing.TypeVar):
            return self._variable(annotation)
        if hasattr(annotation, "__supertype__"):
            return self.hint(annotation.__supertype__)
        origin = getattr(annotation, "__origin__", None)
        if hasattr(annotation, "__metadata__") and origin is not None:
            return self._annotated(annotation)
        if getattr(origin, "_name", None) == "Literal":
            return self._literal(annotation)
        if annotation is typing.Final:
            return ANY
        if annotation is typing.Self and self._owners:
            return self.hint(self._owners[-1])
        if getattr(origin, "_name", None) in _QUALIFIERS:
            return self.hint(annotation.__args__[0])
        if getattr(origin, "_name", None) in ("TypeGuard", "TypeIs"):
            return _PLAIN[bool]
        if type(origin).__name__ == "TypeAliasType":
            closed = substituted(annotation, self._variables)
            return self._recursive(closed, lambda: self._alias(origin, closed.__args__))
        return None

    def _generic(self, annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> Hint:
        if origin is tuple and (arguments or "[" in str(annotation)):
            return self._tuple(annotation, arguments)
        hint = collection(origin, arguments, self.hint)
        if hint is not None:
            return hint
        if origin in _BINARY or is_buffer(origin):
            return Binary(origin, is_whole=False)
        return self._class(annotation, origin, arguments)

    def _tuple(self, annotation: Any, arguments: tuple[Any, ...]) -> Hint:
        parts = list(self._parts(arguments))
        rests = [index for index, (_, is_rest) in enumerate(parts) if is_rest]
        if len(rests) > 1:
            raise HintError(f"is `{display(annotation)}`, which has several parts of any length; keep one of them")
        hints = [hint for hint, _ in parts]
        if not rests:
            return Positions(hints)
        if len(hints) == 1:
            return Items(hints[0], tuple, (tuple, list))
        (index,) = rests
        return Positions(hints[:index], hints[index], hints[index + 1 :])

    def _parts(self, arguments: tuple[Any, ...]) -> Iterator[tuple[Hint, bool]]:
        """Iterate over the hints of a tuple's items, and whether each is the hint of any number of items."""
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            yield self.hint(arguments[0]), True
            return
        for argument in arguments:
            inner = unpacked(argument)
            if inner is None:
                # Before Python 3.11, `Tuple[()]` had this argument.
                if argument != ():
                    yield self.hint(argument), False
            elif is_variadic(inner):
                if inner in self._variables:
                    for value in self._variables[inner]:
                        yield self.within(value, {}), False
                else:
                    yield ANY, True
            else:
                if type(inner).__name__ == "TypeAliasType":
                    inner = inner.__value__
                if getattr(inner, "__origin__", inner) is not tuple:
                    raise HintError(f"unpacks `{display(inner)}`, which is not a tuple")
                yield from self._parts(getattr(inner, "__args__", (object, ...)))

    def _class(self, annotation: Any, cls: Any, arguments: tuple[Any, ...]) -> Hint:
        if "snakepit_bridge._converters" in sys.modules or cls.__module__.partition(".")[0] in _PACKAGES:
            from snakepit_bridge._hints.packages import package_hint

            packaged = package_hint(cls)
            if packaged is not None:
                return packaged
        enum, numpy = sys.modules.get("enum"), sys.modules.get("numpy")
        if enum is not None and issubclass(cls, enum.Enum):
            return self._recursive(
                cls, lambda: Flags(cls) if issubclass(cls, enum.Flag) else Enumeration(cls, self.hint)
            )
        if numpy is not None and issubclass(cls, numpy.ndarray | numpy.generic):
            from snakepit_bridge._hints.arrays import Scalar, array_hint

            if cls is numpy.ndarray:
                return array_hint(annotation, arguments)
            # The others derive from `str` and `bytes`.
            if issubclass(cls, numpy.generic) and not issubclass(cls, numpy.character):
                return Scalar(cls)
        if "pydantic" in sys.modules:
            from snakepit_bridge._hints.foreign import Pydantic, is_foreign

            if is_foreign(cls):
                return self._recursive(annotation, lambda: Pydantic(annotation, cls.__name__))
        from snakepit_bridge._hints.standard import standard

        hint = standard(cls)
        if hint is not None:
            return hint
        annotation = substituted(annotation, self._variables)
        known = self._known.get(annotation)
        return self._with_fields(annotation, cls) if known is None else known

    def _with_fields(self, annotation: Any, cls: Any) -> Hint:
        from snakepit_bridge._hints.classes import fields_of, with_fields

        fields = with_fields(cls)
        base = base_of(cls) if fields is None else None
        if fields is None and base is None:
            raise unsupported(annotation, cls)
        if len(self._owners) >= _MAX_DEPTH:
            raise HintError(f"is `{display(annotation)}`, whose classes are nested too deeply")
        values = values_by_class(cls, getattr(annotation, "__args__", ()))
        self._owners.append(annotation)
        try:
            if fields is None:
                return self._recursive(annotation, lambda: Derived(cls, self.within(base, values[cls])))
            self._known[annotation] = fields
            fields.set_fields(fields_of(self, cls, values))
        finally:
            self._owners.pop()
        return fields

    def annotations_of(self, cls: type) -> dict[str, Any]:
        """Return the evaluated annotations of a class.

        Raises:
            HintError: An annotation cannot be evaluated.
        """
        import typing

        try:
            return typing.get_type_hints(cls, include_extras=True)
        except NameError:
            # A class defined in a function is not in the namespace of its module. Its own name, and those of the
            # classes that contain it, are among the classes compiled so far. Before Python 3.13, its type parameters
            # are missing, too.
            local_classes = {cls.__name__: cls for cls in self._known if isinstance(cls, type)}
        except Exception as error:
            raise HintError(f"is `{cls.__qualname__}`, whose hints cannot be evaluated: {error}") from None
        try:
            parameters = [parameter for base in cls.__mro__ for parameter in getattr(base, "__type_params__", ())]
            variables = {parameter.__name__: parameter for parameter in reversed(parameters)}
            namespace = {**self._namespace, **local_classes, cls.__name__: cls, **variables}
            return typing.get_type_hints(cls, localns=namespace, include_extras=True)
        except NameError as error:
            raise HintError(
                f"is `{cls.__qualname__}`, one of whose fields has a hint that cannot be evaluated: {error}; define or "
                "import it at module level, outside of `if TYPE_CHECKING`"
            ) from None

    def _recursive(self, key: Any, compile_target: Callable[[], Hint]) -> Hint:
        known = self._known.get(key)
        if known is not None:
            return known
        forward = ForwardHint(getattr(key, "__name__", "Value"))
        self._known[key] = forward
        try:
            forward.target = compile_target()
        finally:
            del self._known[key]
        self._known[key] = forward.target
        return forward.target

    def _evaluated(self, text: str) -> Hint:
        local_classes = {cls.__name__: cls for cls in self._known if isinstance(cls, type)}
        try:
            annotation = eval(text, self._namespace, local_classes)  # noqa: S307
        except Exception as error:
            raise HintError(Unresolved(text, error).problem) from None
        return self.hint(annotation)

    def _alias(self, alias: Any, arguments: tuple[Any, ...]) -> Hint:
        try:
            value = alias.__value__
        except Exception as error:
            raise HintError(Unresolved(alias.__name__, error).problem) from None
        # With arguments, the value has no variables of a class.
        return self.within(value, bound(alias.__type_params__, arguments)) if arguments else self.hint(value)

    def _union(self, members: tuple[Any, ...]) -> Hint:
        hints: list[Hint] = []
        # No value has the type `Never`, so a union with it has the values of the others.
        for member in [member for member in members if not _is_never(member)] or members:
            hint = self.hint(member)
            if hint is ANY:
                return ANY
            hints.append(hint)
        return Union(hints)

    def _variable(self, variable: Any) -> Hint:
        if variable in self._variables:
            # The value has no variables of this class.
            return self.within(self._variables[variable], {})
        default = default_of(variable)
        if default is not None:
            return self.hint(default[0])
        if variable.__constraints__:
            return self._union(variable.__constraints__)
        return ANY if variable.__bound__ is None else self.hint(variable.__bound__)

    def _literal(self, annotation: Any) -> Hint:
        return Choice([(getattr(value, "value", value), value) for value in annotation.__args__])

    def _annotated(self, annotation: Any) -> Hint:
        metadata = annotation.__metadata__
        if "pydantic" in sys.modules and any(_needs_pydantic(item) for item in metadata):
            from snakepit_bridge._hints.foreign import Pydantic

            return Pydantic(annotation, getattr(annotation.__origin__, "__name__", "Value"))
        from snakepit_bridge._hints.constraints import annotated

        return annotated(self.top_level(annotation.__origin__), metadata, f"`{display(annotation)}`")


def _needs_pydantic(item: Any) -> bool:
    """Return whether only pydantic understands the metadata, such as its validators."""
    kind = type(item)
    if kind.__name__ == "FieldInfo":
        return item.discriminator is not None or any(map(_needs_pydantic, item.metadata))
    if kind.__name__ == "_PydanticGeneralMetadata":
        # Such as `strict` and `max_digits`.
        return set(vars(item)) != {"pattern"}
    return kind.__module__.startswith("pydantic")


def _is_binary(annotation: Any) -> bool:
    return isinstance(annotation, type) and (annotation in _BINARY or is_buffer(annotation))


def _is_union(annotation: Any) -> bool:
    typing = sys.modules.get("typing")
    return isinstance(annotation, _UNION) or (
        typing is not None and getattr(annotation, "__origin__", None) is typing.Union
    )


def _is_never(annotation: Any) -> bool:
    typing = sys.modules.get("typing")
    return typing is not None and (annotation is typing.NoReturn or annotation is typing.Never)


def _is_array_like(annotation: Any) -> bool:
    typing = sys.modules.get("numpy.typing")
    return typing is not None and annotation == typing.ArrayLike
