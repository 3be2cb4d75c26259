"""Hints of standard library classes that travel as strings: dates, times, decimals, UUIDs and paths."""

from __future__ import annotations

import sys

from snakepit_bridge._hints.base import Hint, invalid, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import timedelta
    from typing import Any

    from snakepit_bridge._hints.base import Schemas


def standard(annotation: type) -> Hint | None:
    """Return the hint of a standard library class, if the class has a string form."""
    datetime = sys.modules.get("datetime")
    if datetime is not None:
        moments: dict[type, tuple[str, str]] = {
            datetime.datetime: ("date-time", "a date and time such as 2026-11-30T12:30:00Z"),
            datetime.date: ("date", "a date such as 2026-11-30"),
            datetime.time: ("time", "a time such as 12:30:00"),
        }
        if annotation in moments:
            return Moment(annotation, *moments[annotation])
        if annotation is datetime.timedelta:
            return Duration(annotation)
    decimal, uuid, pathlib = (sys.modules.get(name) for name in ("decimal", "uuid", "pathlib"))
    if decimal is not None and annotation is decimal.Decimal:
        return Decimal(annotation)
    if uuid is not None and annotation is uuid.UUID:
        return Parsed(annotation, annotation, "uuid", "a UUID")
    if pathlib is not None and issubclass(annotation, pathlib.PurePath):
        kind = pathlib.PurePath if annotation is pathlib.Path else annotation
        return Parsed(annotation, kind, "path", "a path")
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
        except ValueError:
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


class Decimal(Hint):
    """A ``Decimal``: a number or a string. The written form is a string, which is exact."""

    expected = "a number, or a decimal number as text"

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def read(self, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self.mismatch(value)
        try:
            # The shortest text of a float is the number that the caller wrote.
            number = self._kind(repr(value) if isinstance(value, float) else value)
        except ArithmeticError:
            number = None
        if number is None or not number.is_finite():
            raise invalid(f"is {show(value)}, expected {self.expected}")
        return number

    def write(self, value: Any) -> Any:
        if not isinstance(value, self._kind):
            raise self.mismatch(value)
        return str(value)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        text = {"type": "string"}
        return text if schemas.is_result else {"anyOf": [{"type": "number"}, text]}
