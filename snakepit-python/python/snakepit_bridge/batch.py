"""Writes of several variables that are sent together."""

from __future__ import annotations

from snakepit_bridge import _checked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self

    from snakepit_bridge.variables import SessionVariables


class Batch:
    """Writes that are sent together: :meth:`SessionVariables.batch_updates`."""

    __slots__ = ("_atomic", "_context", "_expected_versions", "_metadata", "_updates", "versions")

    def __init__(self, context: SessionVariables, atomic: bool, metadata: Mapping[str, str] | None) -> None:
        self._context = context
        self._atomic = _checked.flag("atomic", atomic)
        self._metadata = _checked.metadata(metadata)
        self._updates: dict[str, Any] = {}
        self._expected_versions: dict[str, int] = {}
        #: The new versions, once the block was left.
        self.versions: dict[str, int] = {}

    def set(self, identifier: str, value: Any, *, expected_version: int | None = None) -> None:
        """Write a variable when the block is left, if it is at this version then. The last write of each counts."""
        identifier = _checked.name("identifier", identifier)
        expected_version = _checked.version("expected_version", expected_version)
        self._updates[identifier] = value
        self._expected_versions.pop(identifier, None)
        if expected_version is not None:
            self._expected_versions[identifier] = expected_version

    def __setitem__(self, identifier: str, value: Any) -> None:
        """Write a variable when the block is left."""
        self.set(identifier, value)

    def __enter__(self) -> Self:
        """Return the batch itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Send the writes, unless the block raised."""
        if exc_type is None and self._updates:
            self.versions = self._context.set_variables(
                self._updates,
                atomic=self._atomic,
                metadata=self._metadata,
                expected_versions=self._expected_versions,
            )
