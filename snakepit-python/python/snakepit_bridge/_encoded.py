"""Bytes that encode an object of another package, such as a table or an image."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Encoded(bytes):
    """The encoded form of an object. A receiver without a type hint for the object gets this form.

    >>> table = client.call("report")  # doctest: +SKIP
    >>> table.format, table.class_name  # doctest: +SKIP
    ('arrow', 'pandas.DataFrame')
    >>> table.load()  # doctest: +SKIP
    """

    #: The native runtime recognizes the class by this attribute.
    __snakepit_format__ = True

    #: The format of the bytes, such as ``arrow`` or ``png``.
    format: str
    #: The class of the object, such as ``pandas.DataFrame``. Empty if the sender did not name it.
    class_name: str

    def __new__(cls, data: bytes, format: str, class_name: str | None = None) -> Encoded:  # noqa: A002
        """Wrap encoded bytes."""
        self = super().__new__(cls, data)
        self.format = format
        self.class_name = class_name or ""
        return self

    def load(self) -> Any:
        """Import the package of the object, and decode the object.

        Raises:
            ValueError: The format is unknown, or the bytes are damaged.
            ImportError: The package is not installed.
        """
        from snakepit_bridge import _converters

        return _converters.load(self)

    def __repr__(self) -> str:
        return f"Encoded(<{len(self)} bytes>, format={self.format!r}, class_name={self.class_name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (bytes(self), self.format, self.class_name)
