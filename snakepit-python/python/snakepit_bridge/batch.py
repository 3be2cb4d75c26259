"""Batches of writes."""

from __future__ import annotations

from snakepit_bridge import _checked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType
    from typing import Any, Self


class Writes:
    """The collected writes of a batch."""

    __slots__ = ("_atomic", "_expected_versions", "_metadata", "_updates", "versions")

    def __init__(self, atomic: bool, metadata: Mapping[str, str] | None) -> None:
        self._atomic = _checked.flag("atomic", atomic)
        self._metadata = _checked.metadata(metadata)
        self._updates: dict[str, Any] = {}
        self._expected_versions: dict[str, int] = {}
        #: The new versions, by identifier. Empty until the block has ended.
        self.versions: dict[str, int] = {}

    def set(self, identifier: str, value: Any, *, expected_version: int | None = None) -> None:
        """Add a write to the batch. A later write of the same variable replaces it.

        Args:
            identifier: The name or id.
            value: The new value.
            expected_version: The version that the variable must have when the batch is sent.
        """
        identifier = _checked.name("identifier", identifier)
        expected_version = _checked.version("expected_version", expected_version)
        self._updates[identifier] = value
        self._expected_versions.pop(identifier, None)
        if expected_version is not None:
            self._expected_versions[identifier] = expected_version

    def __setitem__(self, identifier: str, value: Any) -> None:
        """Add a write to the batch."""
        self.set(identifier, value)

    def _options(self) -> dict[str, Any]:
        return {
            "atomic": self._atomic,
            "metadata": self._metadata,
            "expected_versions": self._expected_versions,
        }


class Batch(Writes):
    """A batch of writes, created by :meth:`SessionVariables.batch_updates`."""

    __slots__ = ("_set_variables",)

    def __init__(
        self, set_variables: Callable[..., dict[str, int]], atomic: bool, metadata: Mapping[str, str] | None
    ) -> None:
        super().__init__(atomic, metadata)
        self._set_variables = set_variables

    def __enter__(self) -> Self:
        """Return the batch."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Send the batch, unless the block raised."""
        if exc_type is None and self._updates:
            self.versions = self._set_variables(self._updates, **self._options())


class AsyncBatch(Writes):
    """A batch of writes for coroutines, created by :meth:`AsyncSession.batch_updates`."""

    __slots__ = ("_set_variables",)

    def __init__(
        self,
        set_variables: Callable[..., Awaitable[dict[str, int]]],
        atomic: bool,
        metadata: Mapping[str, str] | None,
    ) -> None:
        super().__init__(atomic, metadata)
        self._set_variables = set_variables

    async def __aenter__(self) -> Self:
        """Return the batch."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Send the batch, unless the block raised."""
        if exc_type is None and self._updates:
            self.versions = await self._set_variables(self._updates, **self._options())
