"""Hints of standard library classes that travel as strings: dates, times, decimals, UUIDs, addresses and paths."""

from __future__ import annotations

import sys

from snakepit_bridge._hints.base import Hint, invalid, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from typing import Any

    from snakepit_bridge._hints.base import Schemas


def standard(annotation: type) -> Hint | None:
    """Return the hint of a standard library class, or of a class derived from it, if it has a string form."""
    for module, name, hint_of in _CLASSES:
        base = getattr(sys.modules.get(module), name, None)
        if base is not None and issubclass(annotation, base):
            hint: Hint = hint_of(annotation)
            return hint
    return None


class Parsed(Hint):
    """A class whose constructor takes a string, and whose `str` returns it."""

    wire = "string"

    def __init__(self, make: Any, kind: Any, format_name: str, expected: str) -> None:
        self._make = make
        #: The class of the values that the tool may return.
        self._kind = kind
        self._format = format_name
        self.expected = expected

    def read(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise self.mismatch(value)
        try:
            return self._make(value)
        except (ValueError, LookupError, OSError):  # The latter two for an unknown time zone.
            raise invalid(f"is {show(value)}, expected {self.expected}") from None

    def write(self, value: Any) -> Any:
        if not isinstance(value, self._kind):
            raise self.mismatch(value)
        return str(value)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "string", "format": self._format}


class Moment(Parsed):
    """A ``datetime``, ``date`` or ``time`` in ISO 8601."""

    def __init__(self, kind: Any, format_name: str, expected: str) -> None:
        super().__init__(kind.fromisoformat, kind, format_name, expected)

    def write(self, value: Any) -> Any:
        # A datetime is also a date, but its form is another one.
        if not isinstance(value, self._kind) or (self._format == "date" and hasattr(value, "hour")):
            raise self.mismatch(value)
        return value.isoformat()


class Duration(Hint):
    """A ``timedelta`` as an ISO 8601 duration."""

    wire = "string"
    expected = "a duration such as P1DT2H30M"

    def __init__(self, kind: type[timedelta]) -> None:
        self._kind = kind

    def read(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise self.mismatch(value)
        parts = _duration(value)
        if parts is None:
            raise invalid(f"is {show(value)}, expected {self.expected}")
        try:
            return self._kind(**parts)
        except OverflowError:
            raise invalid(f"is {show(value)}, which is too long for a timedelta") from None

    def write(self, value: Any) -> Any:
        if not isinstance(value, self._kind):
            raise self.mismatch(value)
        sign = "-" if value.days < 0 else ""
        value = abs(value)
        minutes, seconds = divmod(value.seconds, 60)
        hours, minutes = divmod(minutes, 60)
        fraction = f".{value.microseconds:06}".rstrip("0") if value.microseconds else ""
        clock = "".join(f"{number}{unit}" for number, unit in ((hours, "H"), (minutes, "M")) if number)
        clock += f"{seconds}{fraction}S" if seconds or fraction else ""
        days = f"{value.days}D" if value.days else ""
        return f"{sign}P{days}{f'T{clock}' if clock else ''}" if days or clock else "PT0S"

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "string", "format": "duration"}


def _duration(text: str) -> dict[str, float] | None:
    """Parse an ISO 8601 duration without years and months, whose lengths vary."""
    sign = -1 if text.startswith("-") else 1
    date, separator, clock = text.lstrip("+-").upper().partition("T")
    if not date.startswith("P") or len(text) - len(text.lstrip("+-")) > 1 or bool(separator) != bool(clock):
        return None
    found: dict[str, float] = {}
    clock_units = {"H": "hours", "M": "minutes", "S": "seconds"}
    for part, units in ((date[1:], {"W": "weeks", "D": "days"}), (clock, clock_units)):
        digits = ""
        rest = list(units)
        for letter in part:
            if letter not in units:
                digits += letter
                continue
            if letter not in rest or not digits.replace(".", "", 1).isdecimal() or not digits.isascii():
                return None
            # Units follow each other from the longest to the shortest.
            rest = rest[rest.index(letter) + 1 :]
            found[units[letter]] = sign * (float(digits) if "." in digits else int(digits))
            digits = ""
        if digits:
            return None
    return found or None


class Rational(Hint):
    """A ``Decimal`` or a ``Fraction``: a number or a string. The written form is a string, which is exact."""

    def __init__(self, kind: Any, expected: str) -> None:
        self._kind = kind
        self.expected = expected

    def read(self, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self.mismatch(value)
        try:
            # The shortest text of a float is the number that the caller wrote.
            number = self._number(repr(value) if isinstance(value, float) else value)
        except (ArithmeticError, ValueError):
            number = None
        if number is None:
            raise invalid(f"is {show(value)}, expected {self.expected}")
        return number

    def _number(self, value: int | str) -> Any:
        """Return a finite number, or ``None``."""
        number = self._kind(value)
        return number if number.is_finite() else None

    def write(self, value: Any) -> Any:
        if not isinstance(value, self._kind):
            raise self.mismatch(value)
        return str(value)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        text = {"type": "string"}
        return text if schemas.is_result else {"anyOf": [{"type": "number"}, text]}


class Fraction(Rational):
    """A ``Fraction``, such as ``1/3``."""

    def _number(self, value: int | str) -> Any:
        # The integers of a large exponent would use up the memory.
        exponent = value.lower().partition("e")[2] if isinstance(value, str) else ""
        return self._kind(value) if len(exponent.lstrip("+-0")) < _EXPONENT_DIGITS else None


#: A fraction may have exponents with fewer digits than this.
_EXPONENT_DIGITS = 5


class Words(Parsed):
    """A ``UserString``."""

    def __init__(self, kind: Any) -> None:
        super().__init__(kind, kind, "", "string")

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        return {"type": "string"}


def _parsed(format_name: str, expected: str) -> Callable[[Any], Hint]:
    return lambda kind: Parsed(kind, kind, format_name, expected)


def _moment(format_name: str, expected: str) -> Callable[[Any], Hint]:
    return lambda kind: Moment(kind, format_name, expected)


def _path(kind: Any) -> Hint:
    pathlib = sys.modules["pathlib"]
    return Parsed(kind, pathlib.PurePath if kind is pathlib.Path else kind, "path", "a path")


#: The module and the name of each class, and the function that returns the hint of it or of a class derived from it.
_CLASSES: list[tuple[str, str, Callable[[Any], Hint]]] = [
    # A datetime is also a date, and an interface is also an address.
    ("datetime", "datetime", _moment("date-time", "a date and time such as 2026-11-30T12:30:00Z")),
    ("datetime", "date", _moment("date", "a date such as 2026-11-30")),
    ("datetime", "time", _moment("time", "a time such as 12:30:00")),
    ("datetime", "timedelta", Duration),
    ("decimal", "Decimal", lambda kind: Rational(kind, "a number, or a decimal number as text")),
    ("fractions", "Fraction", lambda kind: Fraction(kind, "a number, or a fraction such as 1/3 as text")),
    ("uuid", "UUID", _parsed("uuid", "a UUID")),
    ("pathlib", "PurePath", _path),
    ("ipaddress", "IPv4Interface", _parsed("ipv4interface", "an IPv4 interface such as 192.0.2.1/24")),
    ("ipaddress", "IPv6Interface", _parsed("ipv6interface", "an IPv6 interface such as 2001:db8::1/32")),
    ("ipaddress", "IPv4Address", _parsed("ipv4", "an IPv4 address such as 192.0.2.1")),
    ("ipaddress", "IPv6Address", _parsed("ipv6", "an IPv6 address such as 2001:db8::1")),
    ("ipaddress", "IPv4Network", _parsed("ipv4network", "an IPv4 network such as 192.0.2.0/24")),
    ("ipaddress", "IPv6Network", _parsed("ipv6network", "an IPv6 network such as 2001:db8::/32")),
    ("zoneinfo", "ZoneInfo", _parsed("zoneinfo", "a time zone such as Europe/Berlin")),
    ("collections", "UserString", Words),
]
