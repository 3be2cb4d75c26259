"""The contract of a tool: its hints, as converters of arguments and results.

The native runtime handles tools whose hints are plain. Only for others, it calls the converters.
"""

from __future__ import annotations

# `_checked` explains why this is not imported from `collections.abc`.
import _collections_abc as abc
import sys

from snakepit_bridge import _signatures
from snakepit_bridge.chunks import StreamChunk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from snakepit_bridge._hints.base import Hint, InvalidError, Schemas
    from snakepit_bridge._hints.compiler import Compiler

#: The types that host and native runtime check and convert without Python code, with their names on the wire.
PLAIN: dict[Any, str] = {
    bool: "boolean",
    bytes: "bytes",
    dict: "map",
    float: "float",
    int: "integer",
    list: "list",
    str: "string",
    type(None): "null",
    None: "null",
}

#: The JSON Schemas of the plain types.
_SCHEMAS: dict[str, dict[str, Any]] = {
    "boolean": {"type": "boolean"},
    "bytes": {"type": "string", "contentEncoding": "base64"},
    "float": {"type": "number"},
    "integer": {"type": "integer"},
    "list": {"type": "array", "items": {}},
    "map": {"type": "object", "additionalProperties": True},
    "null": {"type": "null"},
    "string": {"type": "string"},
    # As in `_hints.arrays`, which imports numpy.
    "tensor": {"type": "array", "format": "ndarray", "items": {}},
}

#: The type of `int | None`.
_UNION = type(int | None)

#: The hints of functions that return a stream. The first argument is the type of its items.
_STREAMS: frozenset[Any] = frozenset(
    {abc.Iterator, abc.Generator, abc.AsyncIterator, abc.AsyncGenerator, abc.AsyncIterable}
)

#: The hints of awaitables, and the position of their result type.
_AWAITABLES: dict[Any, int] = {abc.Awaitable: 0, abc.Coroutine: 2}


class ResultRule:
    """The rule for one kind of results. Mirrors `ResultRule` of the native runtime."""

    __slots__ = ("exact", "write")

    def __init__(self, exact: tuple[type, ...], write: Callable[[Any, str], Any]) -> None:
        #: Values of exactly these types are valid and stay unchanged.
        self.exact = exact
        #: Returns the JSON form of another value. Raises a ``TypeError`` with its description if the value contradicts
        #: the hint.
        self.write = write


class Contract:
    """The converters of a tool, ``None`` where any value is accepted. Mirrors `Contract` of the native runtime."""

    __slots__ = ("item", "item_schema", "others_schema", "read", "result", "result_schema")

    def __init__(self) -> None:
        #: Converts the arguments of a call in their dict. Returns the problems, or ``None`` for valid arguments.
        self.read: Callable[[dict[str, Any]], list[tuple[str, str]] | None] | None = None
        #: The rule for the value of a call.
        self.result: ResultRule | None = None
        #: The rule for each item of a stream.
        self.item: ResultRule | None = None
        #: The schema of arguments that the tool takes as ``**kwargs``.
        self.others_schema: dict[str, Any] | None = None
        self.result_schema: dict[str, Any] | None = None
        self.item_schema: dict[str, Any] | None = None


class Hints:
    """The hints of one tool. Compiles those that are not plain."""

    def __init__(self, function: Callable[..., Any], tool: str) -> None:
        self._function = function
        self._tool = tool
        self._compiler: Compiler | None = None
        #: One for all parameters, so that each class has one name.
        self._schemas: Schemas | None = None

    def compile(self, annotation: Any, owner: str) -> Hint:
        """Compile a hint.

        Args:
            annotation: The hint.
            owner: The parameter, or "the result".

        Raises:
            TypeError: The hint is not supported.
        """
        from snakepit_bridge._hints.base import HintError

        try:
            return self._loaded_compiler().top_level(annotation)
        except HintError as error:
            raise TypeError(f"the hint of {owner} of tool `{self._tool}` {error}") from None

    def _loaded_compiler(self) -> Compiler:
        from snakepit_bridge._hints.compiler import Compiler

        if self._compiler is None:
            self._compiler = Compiler(_signatures.namespace_of(self._function))
        return self._compiler

    def keys(self, annotation: Any, owner: str) -> list[tuple[str, Any, bool]] | None:
        """Return the keys, hints and necessity of the arguments that ``Unpack[..]`` declares. ``None`` for other hints.

        Raises:
            TypeError: The hint unpacks something else than a ``TypedDict``.
        """
        from snakepit_bridge._hints.base import HintError
        from snakepit_bridge._hints.classes import keys_of
        from snakepit_bridge._hints.generics import unpacked

        inner = unpacked(annotation)
        if inner is None:
            return None
        try:
            keys = keys_of(self._loaded_compiler(), inner)
            if keys is None:
                raise HintError(f"is `{_display(annotation)}`; only a `TypedDict` can be unpacked here")
        except HintError as error:
            raise TypeError(f"the hint of {owner} of tool `{self._tool}` {error}") from None
        return keys

    def schema(self, hint: Hint) -> dict[str, Any]:
        """Return the JSON Schema of an argument."""
        from snakepit_bridge._hints.base import Schemas

        if self._schemas is None:
            self._schemas = Schemas(is_result=False)
        return self._schemas.complete(hint.schema(self._schemas))

    def rule(self, annotation: Any, owner: str) -> tuple[ResultRule | None, dict[str, Any] | None]:
        """Return the rule and the schema for values with a hint. ``None`` if any value is accepted.

        Raises:
            TypeError: The hint is not supported.
        """
        if is_any(annotation) or annotation is StreamChunk or _is_never(annotation):
            return None, None
        members = annotation.__args__ if _is_union(annotation) else (annotation,)
        plain = [plain_type(member) for member in members]
        if None not in plain:
            exact = tuple(type(None) if member is None else member for member in members)
            schemas = [_SCHEMAS[name] for name in plain if name is not None]
            # Compiled when a value of another type is returned, which is rare.
            rule = ResultRule(exact, _Writer(lambda: self.compile(annotation, owner)))
            return rule, schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        from snakepit_bridge._hints.base import ANY, Schemas

        hint = self.compile(annotation, owner)
        if hint is ANY:
            return None, None
        definitions = Schemas(is_result=True)
        exact = () if hint.exact is None else (hint.exact,)
        return ResultRule(exact, _Writer(lambda: hint)), definitions.complete(hint.schema(definitions))

    def apply_result(self, contract: Contract, annotation: Any, *, is_generator: bool) -> None:
        """Set the rules of a contract for the results of a tool.

        Raises:
            TypeError: The hint is not supported.
        """
        annotation = _unwrapped(_awaited(annotation))
        item = stream_item(annotation, is_generator=is_generator)
        if item is not None:
            contract.item, contract.item_schema = self.rule(item, "the items")
            if not is_generator:
                contract.result = ResultRule((), _Writer(_stream_hint))
        elif is_generator and isinstance(annotation, _signatures.Unresolved):
            raise TypeError(f"the hint of the result of tool `{self._tool}` {annotation.problem}")
        elif is_generator and not is_any(annotation):
            members = annotation.__args__ if _is_union(annotation) else ()
            streams = [member for member in members if stream_item(member, is_generator=True) is not None]
            fix = _display(streams[0]) if streams else f"Iterator[{_display(annotation)}]"
            raise TypeError(
                f"the hint of the result of tool `{self._tool}` is `{_display(annotation)}`, but the tool yields; "
                f"write `{fix}`, or `AsyncIterator[..]` for `async def`"
            )
        else:
            contract.result, contract.result_schema = self.rule(annotation, "the result")


def is_any(annotation: Any) -> bool:
    """Return whether an annotation accepts any value."""
    typing = sys.modules.get("typing")
    return annotation is _signatures.EMPTY or annotation is object or (typing is not None and annotation is typing.Any)


def plain_type(annotation: Any) -> str | None:
    """Return the wire type of a plain hint. ``None`` for another hint."""
    try:
        known = PLAIN.get(annotation)
    except TypeError:  # It cannot be hashed.
        return None
    if known is not None or not isinstance(annotation, type) or hasattr(annotation, "__args__"):
        return known
    return "tensor" if (annotation.__module__, annotation.__name__) == ("numpy", "ndarray") else None


def plain_parameter(annotation: Any, default: Any) -> str | None:
    """Return the wire type of a plain parameter, or ``None``.

    ``X | None = None`` is ``X``, because the host accepts null if it is the default.
    """
    if is_any(annotation):
        return "any"
    if default is None and _is_union(annotation):
        members = [member for member in annotation.__args__ if member is not type(None)]
        if len(members) == 1:
            return plain_type(members[0])
    return plain_type(annotation)


def with_default(hint: Hint, default: Any) -> tuple[Hint, Any]:
    """Return a hint that accepts the default ``None``, and the JSON form of the default."""
    if default is _signatures.EMPTY or default is _signatures.ABSENT:
        return hint, None
    if default is None:
        from snakepit_bridge._hints.unions import Default

        return Default(hint), None
    try:
        return hint, hint.write(default)
    except Exception:
        # The tool itself still has the default.
        return hint, default


def stream_item(annotation: Any, *, is_generator: bool) -> Any:
    """Return the item type of a stream. ``None`` for the hint of a single value."""
    origin = getattr(annotation, "__origin__", annotation)
    try:
        is_stream = origin in _STREAMS or (is_generator and origin is abc.Iterable)
    except TypeError:  # It cannot be hashed.
        return None
    if not is_stream:
        return None
    arguments = getattr(annotation, "__args__", None)
    return arguments[0] if arguments else _signatures.EMPTY


def _awaited(annotation: Any) -> Any:
    """Return the result type of an awaitable, and any other annotation unchanged."""
    origin = getattr(annotation, "__origin__", None)
    if not isinstance(origin, type) or origin not in _AWAITABLES:
        return annotation
    position = _AWAITABLES[origin]
    return annotation.__args__[position] if len(annotation.__args__) > position else _signatures.EMPTY


def _unwrapped(annotation: Any) -> Any:
    """Return the hint of a stream, or of a function that always raises, without its alias and its metadata.

    Return any other annotation unchanged.
    """
    inner = annotation
    while True:
        origin = getattr(inner, "__origin__", None)
        if origin is not None and hasattr(inner, "__metadata__"):
            inner = origin
        elif type(inner).__name__ == "TypeAliasType" or type(origin).__name__ == "TypeAliasType":
            from snakepit_bridge._hints.generics import value_of_alias

            try:
                inner = value_of_alias(inner, ()) if origin is None else value_of_alias(origin, inner.__args__)
            except Exception:
                # The compiler reports it.
                return annotation
        else:
            break
    if inner is annotation:
        return annotation
    inner = _awaited(inner)
    return inner if _is_never(inner) or stream_item(inner, is_generator=False) is not None else annotation


def _is_union(annotation: Any) -> bool:
    typing = sys.modules.get("typing")
    return isinstance(annotation, _UNION) or (
        typing is not None and getattr(annotation, "__origin__", None) is typing.Union
    )


def _display(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _stream_hint() -> Hint:
    from snakepit_bridge._hints.base import Hint

    class Stream(Hint):
        expected = "an iterator, as its hint declares"

        def write(self, value: Any) -> Any:
            raise self.mismatch(value)

    return Stream()


class Reader:
    """Converts the arguments of a tool.

    Args:
        hints: The hints of parameters that are not plain.
        names: The names of all parameters.
        others: The hint of all other arguments, if the tool takes any.
        factories: Functions that create the defaults that Python would not.
    """

    def __init__(
        self,
        hints: dict[str, Hint],
        names: frozenset[str],
        others: Hint | None,
        factories: dict[str, Callable[[], Any]],
    ) -> None:
        from snakepit_bridge._hints.base import InvalidError, shown

        self._error, self._shown = InvalidError, shown
        self._hints = list(hints.items())
        self._names = names
        self._others = others
        self._factories = factories

    def __call__(self, arguments: dict[str, Any]) -> list[tuple[str, str]] | None:
        """Convert arguments in place. Return their problems, or ``None``."""
        problems: list[tuple[str, str]] = []
        hints = self._hints
        if self._others is not None:
            hints = hints + [(name, self._others) for name in arguments if name not in self._names]
        for name, hint in hints:
            if name not in arguments:
                continue
            try:
                arguments[name] = hint.read(arguments[name])
            except self._error as error:
                problems += [(_cut(name + path, 128), _cut(problem, 256)) for path, problem in error.problems]
        if problems:
            return self._shown(problems)
        for name, make in self._factories.items():
            if name not in arguments:
                arguments[name] = make()
        return None


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class _Writer:
    """Converts a result of a tool."""

    __slots__ = ("_compile", "_error", "_hint", "_shown")

    def __init__(self, compile_hint: Callable[[], Hint]) -> None:
        self._compile = compile_hint
        self._hint: Hint | None = None
        self._error: type[InvalidError]
        self._shown: Callable[[list[tuple[str, str]]], list[tuple[str, str]]]

    def __call__(self, value: Any, description: str) -> Any:
        """Return the JSON form of a value.

        Raises:
            TypeError: The value contradicts the hint.
        """
        if self._hint is None:
            from snakepit_bridge._hints.base import InvalidError, shown

            self._hint, self._error, self._shown = self._compile(), InvalidError, shown
        try:
            return self._hint.write(value)
        except self._error as error:
            (path, problem), *others = self._shown(error.problems)
        parts = [f"{description}{path} {problem}"]
        parts += [f"`{path.removeprefix('.')}` {problem}" for path, problem in others]
        raise TypeError(", and ".join([", ".join(parts[:-1]), parts[-1]] if others else parts))


def _is_never(annotation: Any) -> bool:
    """Return whether a hint says that a function always raises."""
    typing = sys.modules.get("typing")
    return typing is not None and annotation in (typing.NoReturn, getattr(typing, "Never", None))
