"""Compiles type annotations to `Hint` objects, which read, write and describe values."""

from __future__ import annotations

import sys

from snakepit_bridge._hints.base import ANY, Hint, HintError, Schemas, type_name
from snakepit_bridge._hints.containers import LISTS, MAPS, Entries, Items, Positions
from snakepit_bridge._hints.scalars import Binary, Boolean, Choice, Enumeration, Flags, Float, Integer, Null, Text
from snakepit_bridge._hints.unions import Union
from snakepit_bridge._signatures import EMPTY, Unresolved

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

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
_PACKAGES = frozenset({"pandas", "polars", "pyarrow", "torch", "PIL"})

#: The type of `int | str`.
_UNION = type(int | None)


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
        self._variables: dict[Any, Any] = {}

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
            raise HintError(f"is `{annotation!r}`, which is not a type") from None
        if plain is not None:
            return plain
        special = self._special(annotation)
        if special is not None:
            return special
        origin = getattr(annotation, "__origin__", annotation)
        arguments: tuple[Any, ...] = getattr(annotation, "__args__", ()) or ()
        if not isinstance(origin, type):
            raise HintError(f"is `{_display(annotation)}`, which has no JSON form")
        return self._generic(annotation, origin, arguments)

    def _special(self, annotation: Any) -> Hint | None:
        """Compile a special form of `typing`. Return ``None`` for a class."""
        if _is_array_like(annotation):
            return self.hint(sys.modules["numpy"].ndarray)
        if _is_union(annotation):
            return self._union(annotation.__args__)
        typing = sys.modules.get("typing")
        kind = type(annotation).__name__
        if kind == "TypeAliasType":
            return self._recursive(annotation, lambda: self.hint(annotation.__value__))
        if typing is None:
            return None
        if annotation is typing.Any:
            return ANY
        if annotation is getattr(typing, "LiteralString", None):
            return _PLAIN[str]
        if annotation in (typing.NoReturn, getattr(typing, "Never", None)):
            raise HintError(f"is `{_display(annotation)}`, which no value has")
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
        if getattr(origin, "_name", None) in ("Final", "ClassVar", "Required", "NotRequired", "ReadOnly"):
            return self.hint(annotation.__args__[0])
        if type(origin).__name__ == "TypeAliasType":
            return self._recursive(annotation, lambda: self.hint(_value_of_alias(origin, annotation.__args__)))
        return None

    def _generic(self, annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> Hint:
        if origin is tuple and arguments:
            if len(arguments) == 2 and arguments[1] is Ellipsis:
                return Items(self.hint(arguments[0]), *LISTS[tuple][:2])
            return Positions([self.hint(item) for item in arguments if item != ()])
        if origin is tuple and "[" in str(annotation):
            return Positions([])
        if origin in LISTS or _is_deque(origin):
            make, written, unique = LISTS.get(origin, (origin, origin, False))
            return Items(self.hint(arguments[0]) if arguments else ANY, make, written, unique=unique)
        if origin in MAPS or _is_ordered_dict(origin):
            make, written = MAPS.get(origin, (origin, origin))
            key, value = (self.hint(arguments[0]), self.hint(arguments[1])) if len(arguments) == 2 else (ANY, ANY)
            return Entries(key, value, make, written)
        if origin in _BINARY:
            return Binary(origin, is_whole=False)
        return self._class(annotation, origin, arguments)

    def _class(self, annotation: Any, cls: Any, arguments: tuple[Any, ...]) -> Hint:
        if "snakepit_bridge._converters" in sys.modules or cls.__module__.partition(".")[0] in _PACKAGES:
            from snakepit_bridge._hints.packages import package_hint

            packaged = package_hint(cls)
            if packaged is not None:
                return packaged
        enum, numpy = sys.modules.get("enum"), sys.modules.get("numpy")
        if enum is not None and issubclass(cls, enum.Enum):
            return self._recursive(cls, lambda: Flags(cls) if issubclass(cls, enum.Flag) else Enumeration(cls))
        if numpy is not None and issubclass(cls, numpy.ndarray | numpy.generic):
            from snakepit_bridge._hints.arrays import Scalar, array_hint

            if cls is numpy.ndarray:
                return array_hint(annotation, arguments)
            if issubclass(cls, numpy.generic):
                return Scalar(cls)
        if "pydantic" in sys.modules:
            from snakepit_bridge._hints.foreign import Pydantic, is_foreign

            if is_foreign(cls):
                return self._recursive(annotation, lambda: Pydantic(annotation, cls.__name__))
        from snakepit_bridge._hints.standard import standard

        hint = standard(cls)
        if hint is not None:
            return hint
        from snakepit_bridge._hints.classes import fields_of, with_fields

        known = self._known.get(annotation)
        if known is not None:
            return known
        fields = with_fields(cls)
        if fields is None:
            raise HintError(
                f"is `{_display(annotation)}`, which has no JSON form; register a converter with "
                f"snakepit_bridge.converter({cls.__qualname__})"
            )
        self._known[annotation] = fields
        outer = self._variables
        # The parameters of a generic class, and their values.
        self._variables = {**outer, **dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False))}
        try:
            fields.set_fields(fields_of(self, cls))
        finally:
            self._variables = outer
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
            # classes that contain it, are among the classes compiled so far.
            local_classes = {cls.__name__: cls for cls in self._known if isinstance(cls, type)}
        except Exception as error:
            raise HintError(f"is `{cls.__qualname__}`, whose hints cannot be evaluated: {error}") from None
        try:
            namespace = {**self._namespace, **local_classes, cls.__name__: cls}
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

    def _union(self, members: tuple[Any, ...]) -> Hint:
        hints: list[Hint] = []
        for member in members:
            hint = self.hint(member)
            if hint is ANY:
                return ANY
            hints.append(hint)
        return Union(hints)

    def _variable(self, variable: Any) -> Hint:
        value = self._variables.get(variable, variable)
        if value is not variable:
            return self.hint(value)
        if variable.__constraints__:
            return self._union(variable.__constraints__)
        return ANY if variable.__bound__ is None else self.hint(variable.__bound__)

    def _literal(self, annotation: Any) -> Hint:
        members: list[tuple[Any, Any]] = []
        for value in annotation.__args__:
            form = getattr(value, "value", value)
            members.append((form, value))
        return Choice(members)

    def _annotated(self, annotation: Any) -> Hint:
        metadata = annotation.__metadata__
        if "pydantic" in sys.modules and any(_needs_pydantic(item) for item in metadata):
            from snakepit_bridge._hints.foreign import Pydantic

            return Pydantic(annotation, getattr(annotation.__origin__, "__name__", "Value"))
        from snakepit_bridge._hints.constraints import annotated

        return annotated(self.top_level(annotation.__origin__), metadata, f"`{_display(annotation)}`")


def _needs_pydantic(item: Any) -> bool:
    """Return whether only pydantic understands the metadata, such as its validators."""
    kind = type(item)
    if kind.__name__ == "FieldInfo":
        return item.discriminator is not None or any(map(_needs_pydantic, item.metadata))
    if kind.__name__ == "_PydanticGeneralMetadata":
        # Such as `strict` and `max_digits`.
        return set(vars(item)) != {"pattern"}
    return kind.__module__.startswith("pydantic")


def _value_of_alias(alias: Any, arguments: tuple[Any, ...]) -> Any:
    """Return the value of a generic alias, such as `NDArray[np.float32]` in newer versions of numpy."""
    values = dict(zip(alias.__type_params__, arguments, strict=False))
    value = alias.__value__
    parameters = getattr(value, "__parameters__", ())
    return value[tuple(values.get(parameter, parameter) for parameter in parameters)] if parameters else value


def _is_binary(annotation: Any) -> bool:
    return isinstance(annotation, type) and annotation in _BINARY


def _is_union(annotation: Any) -> bool:
    typing = sys.modules.get("typing")
    return isinstance(annotation, _UNION) or (
        typing is not None and getattr(annotation, "__origin__", None) is typing.Union
    )


def _is_array_like(annotation: Any) -> bool:
    typing = sys.modules.get("numpy.typing")
    return typing is not None and annotation == typing.ArrayLike


def _is_deque(origin: Any) -> bool:
    collections = sys.modules.get("collections")
    return collections is not None and origin is getattr(collections, "deque", None)


def _is_ordered_dict(origin: Any) -> bool:
    collections = sys.modules.get("collections")
    return collections is not None and origin is getattr(collections, "OrderedDict", None)


def _display(annotation: Any) -> str:
    """Return the source form of a hint, for messages."""
    is_class = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    return type_name(annotation) if is_class else repr(annotation)
