"""Converters of objects to lists, maps, strings, bytes and arrays, and back.

The native runtime imports this module for the first value that it cannot convert. It finds the converter by the name of
the value's type, so nothing imports a package that the user has not imported.
"""

from __future__ import annotations

import sys

from snakepit_bridge._encoded import Encoded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Encode = Callable[[Any], Any]

#: The conversions of registered classes, by class.
_registered: dict[type, Converter] = {}
#: The conversions found so far, by class. ``None`` for a class without one. A registration replaces the dictionary, so
#: that a lookup in another thread, which began before it, stores its outdated result in the old one.
_known: dict[type, Encode | None] = {}
#: A limit for programs that create classes at run time.
_MAX_KNOWN = 4096


class Converter:
    """The conversion of a class, which :func:`converter` registers."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self._encode: Encode | None = None
        self._decode: Callable[[Any], Any] | None = None

    def encode(self, function: Encode) -> Encode:
        """Register the function that returns the wire form of an object. Usable as a decorator."""
        self._encode = function
        return function

    def decode(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Register the function that creates an object from its wire form. Usable as a decorator."""
        self._decode = function
        return function

    def write(self, value: Any) -> Any:
        """Return the wire form of an object."""
        if self._encode is None:
            raise TypeError(f"is a `{_name(self.cls)}`, whose converter has no `encode`")
        return self._encode(value)

    def read(self, form: Any) -> Any:
        """Return the object of a wire form."""
        if self._decode is None:
            raise TypeError(f"the converter of `{_name(self.cls)}` has no `decode`")
        return self._decode(form)

    def __call__(self, functions: Any) -> Any:
        """Register ``encode`` and ``decode`` of a class, as a decorator of it."""
        self.encode(functions.encode)
        decode = getattr(functions, "decode", None)
        if decode is not None:
            self.decode(decode)
        return functions


def converter(cls: type, *, encode: Encode | None = None, decode: Callable[[Any], Any] | None = None) -> Converter:
    """Register the conversion of a class and its subclasses.

    Results, arguments, chunks, variables and programs may then contain its objects at any depth. A parameter with the
    class as its hint receives an object. Without a hint, it receives the wire form.

    >>> converter(Money, encode=str, decode=Money.parse)  # doctest: +SKIP

    As a decorator of functions:

    >>> money = converter(Money)  # doctest: +SKIP
    >>> @money.encode  # doctest: +SKIP
    ... def _(value): return {"amount": value.amount, "currency": value.currency}
    >>> @money.decode  # doctest: +SKIP
    ... def _(form): return Money(**form)

    Args:
        cls: The class.
        encode: Returns the wire form of an object: any value that can be sent, such as a dict with bytes and arrays.
        decode: Creates an object from its wire form. A ``ValueError`` or ``TypeError`` means that the form is invalid.

    Raises:
        TypeError: ``cls`` is not a class, or a class that is sent unchanged, such as ``dict``.
    """
    if not isinstance(cls, type):
        raise TypeError(f"`cls` is {cls!r}, expected a class")
    if issubclass(cls, str | bool | int | float | dict | list | tuple | bytes | bytearray | memoryview | type(None)):
        raise TypeError(f"`{_name(cls)}` needs no converter, because its values are sent as they are")
    made = Converter(cls)
    if encode is not None:
        made.encode(encode)
    if decode is not None:
        made.decode(decode)
    global _known
    _registered[cls] = made
    _known = {}
    return made


def registered(cls: type) -> Converter | None:
    """Return the registered converter of a class or of its nearest base."""
    if not _registered:
        return None
    for base in cls.__mro__:
        found = _registered.get(base)
        if found is not None:
            return found
    return None


def encode(value: Any) -> Any:
    """Return the wire form of an object, or ``NotImplemented``. The native runtime calls it."""
    cls = type(value)
    known = _known
    try:
        function = known[cls]
    except KeyError:
        if len(known) >= _MAX_KNOWN:
            known.clear()
        function = known[cls] = _find(cls)
    return NotImplemented if function is None else function(value)


def _find(cls: type) -> Encode | None:
    custom = registered(cls)
    if custom is not None:
        return custom.write
    for base in cls.__mro__:
        function = _CLASSES.get(full_name(base))
        if function is not None:
            return function
    # Dataclasses and attrs classes have no common base class, so they are recognized by their attributes.
    if hasattr(cls, "__dataclass_fields__"):
        return _fields
    if hasattr(cls, "__attrs_attrs__"):
        return _attributes
    package = full_name(cls).partition(".")[0]
    module = _PACKAGES.get(package)
    if module is not None:
        from snakepit_bridge import _packages

        found: Encode | None = getattr(_packages, module)(cls)
        return found
    return None


def full_name(cls: type) -> str:
    """Return the name of a class with its module."""
    # A metaclass may define them as properties that raise.
    try:
        return f"{cls.__module__}.{cls.__qualname__}"
    except Exception:
        name: str = vars(type)["__qualname__"].__get__(cls)
        return name


def load(encoded: Encoded) -> Any:
    """Decode the object of encoded bytes."""
    from snakepit_bridge import _packages

    return _packages.load(encoded)


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in sys.modules["dataclasses"].fields(value)}


def _attributes(value: Any) -> dict[str, Any]:
    # The names of the constructor's parameters, as in the form with a hint.
    return {field.alias: getattr(value, field.name) for field in value.__attrs_attrs__}


def _struct(value: Any) -> dict[str, Any]:
    names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
    form = {encoded: getattr(value, name) for name, encoded in names}
    config = value.__struct_config__
    # The tag identifies the class in a union.
    return form if config.tag_field is None else {config.tag_field: config.tag, **form}


def _model(value: Any) -> Any:
    from snakepit_bridge._hints.foreign import form_of_model

    return form_of_model(value)


def _sorted(value: Any) -> list[Any]:
    try:
        return sorted(value)
    except TypeError:
        return list(value)


def _moment(value: Any) -> str | None:
    # `NaT` of pandas is a datetime.
    return value.isoformat() if value == value else None


def _duration(value: Any) -> str | None:
    if value != value:
        return None
    from snakepit_bridge._hints.standard import Duration

    text: str = Duration(type(value)).write(value)
    return text


def _none(value: Any) -> None:
    del value


def _value(value: Any) -> Any:
    return value.value


#: The conversions of classes by name. They apply to subclasses, too.
_CLASSES: dict[str, Encode] = {
    "builtins.set": _sorted,
    "builtins.frozenset": _sorted,
    "builtins.dict_keys": list,
    "builtins.dict_values": list,
    "builtins.dict_items": list,
    "builtins.mappingproxy": dict,
    "collections.deque": list,
    "collections.UserDict": dict,
    "collections.UserList": list,
    "collections.UserString": str,
    "collections.ChainMap": dict,
    "datetime.datetime": _moment,
    "datetime.date": _moment,
    "datetime.time": _moment,
    "datetime.timedelta": _duration,
    "decimal.Decimal": str,
    "enum.Enum": _value,
    "fractions.Fraction": str,
    "ipaddress.IPv4Address": str,
    "ipaddress.IPv4Network": str,
    "ipaddress.IPv6Address": str,
    "ipaddress.IPv6Network": str,
    "msgspec.Struct": _struct,
    "pathlib.PurePath": str,
    "pathlib._local.PurePath": str,
    "pydantic.main.BaseModel": _model,
    "uuid.UUID": str,
    "zoneinfo.ZoneInfo": str,
    "pandas._libs.missing.NAType": _none,
    "pandas._libs.tslibs.nattype.NaTType": _none,
    # Their names since pandas 3.
    "pandas.api.typing.NAType": _none,
    "pandas.api.typing.NaTType": _none,
}

#: The functions of `_packages` that find the conversion of a class, by package.
_PACKAGES = {
    "pandas": "of_pandas",
    "polars": "of_polars",
    "pyarrow": "of_pyarrow",
    "duckdb": "of_duckdb",
    "_duckdb": "of_duckdb",
    "torch": "of_torch",
    "PIL": "of_pil",
}


def _name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"


def marker(value: Any) -> Any:
    """Return the marker of an object without a wire form, or ``NotImplemented`` unless markers are enabled."""
    if "snakepit_bridge._markers" not in sys.modules:
        import os

        if not os.environ.get("SNAKEPIT_UNSERIALIZABLE"):
            return NotImplemented
    from snakepit_bridge import _markers

    return _markers.marker(value)
