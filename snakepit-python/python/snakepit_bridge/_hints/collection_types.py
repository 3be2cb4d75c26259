"""The collections that a list or a map of JSON may become, and the hints of ranges and of classes of the user."""

from __future__ import annotations

# `_checked` explains why this is not imported from `collections.abc`.
import _collections_abc as abc
import sys

from snakepit_bridge._hints.base import ANY, LENGTHS, Hint, convert, describe, invalid, type_name
from snakepit_bridge._hints.containers import Entries, Items, Positions
from snakepit_bridge._hints.scalars import Integer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from snakepit_bridge._hints.base import Schemas

    #: The function that creates the collection from a list (``None`` for a list), the types that a tool may return for
    #: it, and whether its items are unique.
    ListType = tuple[Callable[[list[Any]], Any] | None, type | tuple[type, ...], bool]
    #: The function that creates the map from a dict (``None`` for a dict), and the type that a tool may return for it.
    MapType = tuple[Callable[[dict[Any, Any]], Any] | None, type]


def dict_keys(items: list[Any]) -> Any:
    """Return the items as the keys of a dict."""
    return dict.fromkeys(items).keys()


def dict_values(items: list[Any]) -> Any:
    """Return the items as the values of a dict."""
    return dict(enumerate(items)).values()


def dict_items(items: list[Any]) -> Any:
    """Return pairs as the items of a dict."""
    return dict(items).items()


_LISTS: dict[Any, ListType] = {
    list: (None, (list, tuple), False),
    tuple: (tuple, (tuple, list), False),
    set: (set, (set, frozenset), True),
    frozenset: (frozenset, (set, frozenset), True),
    abc.Sequence: (None, abc.Sequence, False),
    abc.MutableSequence: (None, abc.MutableSequence, False),
    abc.Collection: (None, abc.Collection, False),
    abc.Iterable: (None, abc.Iterable, False),
    abc.Reversible: (None, abc.Reversible, False),
    abc.Set: (set, abc.Set, True),
    abc.MutableSet: (set, abc.MutableSet, True),
    abc.KeysView: (dict_keys, abc.KeysView, True),
    abc.dict_keys: (dict_keys, abc.KeysView, True),
    abc.ValuesView: (dict_values, abc.ValuesView, False),
    abc.dict_values: (dict_values, abc.ValuesView, False),
    abc.ItemsView: (dict_items, abc.ItemsView, True),
    abc.dict_items: (dict_items, abc.ItemsView, True),
}

#: Not `types.MappingProxyType`, because `types` need not be imported.
_mappingproxy = type(vars(type))

_MAPS: dict[Any, MapType] = {
    dict: (None, dict),
    abc.Mapping: (None, abc.Mapping),
    abc.MutableMapping: (None, abc.MutableMapping),
    _mappingproxy: (_mappingproxy, _mappingproxy),
}

#: The classes of `collections` that are like lists, and those that are like maps.
_LIST_NAMES = ("deque", "UserList")
_MAP_NAMES = ("OrderedDict", "ChainMap", "UserDict", "Counter", "defaultdict")

#: Types whose call without arguments creates the missing value of a `defaultdict`.
_EMPTY = (bool, bytes, dict, float, frozenset, int, list, set, str, tuple)


def collection(origin: Any, arguments: tuple[Any, ...], hint_of: Callable[[Any], Hint]) -> Hint | None:
    """Return the hint of a collection, except for tuples of fixed length. ``None`` for another class.

    Args:
        origin: The class.
        arguments: The hints of its items, or of its keys and values.
        hint_of: Compiles a hint.
    """
    if origin is range:
        return Range()
    known = _LISTS.get(origin) or _named(origin, _LIST_NAMES)
    if known is not None:
        make, written, unique = known if len(known) == 3 else (*known, False)
        item: Hint = ANY
        if len(arguments) == 2 and issubclass(origin, abc.ItemsView):
            item = Positions([hint_of(arguments[0]), hint_of(arguments[1])])
        elif arguments:
            item = hint_of(arguments[0])
        return Items(item, make, written, unique=unique)
    kind = _MAPS.get(origin) or _named(origin, _MAP_NAMES)
    if kind is None:
        return None
    key: Hint = hint_of(arguments[0]) if arguments else ANY
    value: Hint = ANY
    if origin.__name__ == "Counter":
        value = Integer()
    elif len(arguments) == 2:
        value = hint_of(arguments[1])
    make = kind[0]
    if origin.__name__ == "defaultdict":
        factory = _factory(arguments[1]) if len(arguments) == 2 else None
        make = lambda entries: origin(factory, entries)  # noqa: E731
    return Entries(key, value, make, kind[1])


def _named(origin: Any, names: tuple[str, ...]) -> tuple[Any, Any] | None:
    """Return the function and the type for a class of `collections` with one of these names."""
    # Without the module, such a class cannot exist.
    collections = sys.modules.get("collections")
    is_known = collections is not None and origin.__name__ in names and origin is getattr(collections, origin.__name__)
    return (origin, origin) if is_known else None


def _factory(annotation: Any) -> Callable[[], Any] | None:
    """Return the function that creates the missing values of a `defaultdict`. ``None`` if its hint names none."""
    origin = getattr(annotation, "__origin__", annotation)
    if getattr(origin, "__name__", "") == "defaultdict":
        factory = _factory(annotation.__args__[1]) if hasattr(annotation, "__args__") else None
        return lambda: origin(factory)
    return origin if origin in _EMPTY else None


class Range(Hint):
    """A ``range``: a list of integers with equal distances."""

    wire = "list"
    expected = "list of integers with equal distances"
    constraints = LENGTHS

    def read(self, value: Any) -> Any:
        items = Items(Integer(), None, list).read(value)
        if not items:
            return range(0)
        step = items[1] - items[0] if len(items) > 1 else 1
        made = range(items[0], items[-1] + (1 if step > 0 else -1), step) if step else range(0)
        if len(made) != len(items) or any(map(_differ, made, items)):
            raise invalid(f"is a list with other items, expected a {self.expected}")
        return made

    def write(self, value: Any) -> Any:
        if not isinstance(value, range):
            raise invalid(f"{describe(value)}, expected a `range`")
        # The runtime writes it, because its items may exceed the memory.
        return value

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "integer"}}


def _differ(one: int, other: int) -> bool:
    return one != other


#: Classes from which users derive their own, whose objects are sent like those of the base.
_BASES = (str, int, float, bytes, bytearray, list, tuple, set, frozenset, dict)
_BASE_NAMES = (*_LIST_NAMES, *_MAP_NAMES)


def base_of(cls: Any) -> Any:
    """Return the base, with its arguments, of a class whose objects are sent like those of the base, or ``None``."""
    bases = cls.__dict__.get("__orig_bases__", cls.__bases__)
    for base in bases:
        origin = getattr(base, "__origin__", base)
        if not isinstance(origin, type):
            continue
        if origin in _BASES or _named(origin, _BASE_NAMES) is not None:
            return base
        if issubclass(origin, _BASES) or base_of(origin) is not None:
            return base
    return None


class Derived(Hint):
    """A class derived from a builtin type or a class of `collections`, whose constructor takes a value of the base."""

    def __init__(self, cls: Any, inner: Hint) -> None:
        self.cls = self._cls = cls
        self._inner = inner
        self.wire = inner.wire
        self.expected = inner.expected
        self.constraints = inner.constraints

    def read(self, value: Any) -> Any:
        return self._made(self._inner.read(value))

    def read_key(self, key: str) -> Any:
        return self._made(self._inner.read_key(key))

    def _made(self, value: Any) -> Any:
        return value if type(value) is self._cls else convert(self._cls, value)

    def write(self, value: Any) -> Any:
        return self._inner.write(self._checked(value))

    def write_key(self, key: Any) -> Any:
        return self._inner.write_key(self._checked(key))

    def _checked(self, value: Any) -> Any:
        if not isinstance(value, self._cls):
            raise invalid(f"{describe(value)}, expected a `{type_name(self._cls)}`")
        return value

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return self._inner.schema(schemas)
