"""Programs: named blobs, such as trained models, that the host keeps."""

from __future__ import annotations

from collections.abc import MutableMapping

from snakepit_bridge import _checked, _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, ClassVar

    from snakepit_bridge._call import CallLike

_JSON = "application/json"
_OCTETS = "application/octet-stream"


class Programs(MutableMapping[str, "Any"]):
    """The programs of a session, as a mapping. Every operation asks the host.

    ``bytes`` are kept as they are; anything else is kept as JSON and comes back as the object it was.
    """

    __slots__ = ("_call",)

    _is_global: ClassVar[bool] = False

    def __init__(self, call: CallLike) -> None:
        self._call = call

    def put(self, name: str, value: Any, metadata: dict[str, str] | None = None) -> bool:
        """Store a program, replacing one of the same name. Says whether the name was new."""
        return self._put(name, value, metadata, None)

    def _put(self, name: str, value: Any, metadata: dict[str, str] | None, ttl: int | None) -> bool:
        name = _checked.name("name", name)
        if isinstance(value, bytes | bytearray | memoryview):
            data, content_type = value, _OCTETS
        else:
            data, content_type = _native.to_json(value, f"program {name!r}"), _JSON
        return self._call.put_program(
            name, data, content_type, _checked.metadata(metadata), is_global=self._is_global, ttl_seconds=ttl
        )

    def __getitem__(self, name: str) -> Any:
        """Fetch a program.

        Raises:
            ProgramNotFoundError: There is none of this name. It is a ``KeyError`` too, unlike the next.
            NotFoundError: The session is gone.
        """
        data, content_type = self._call.get_program(_checked.name("name", name), self._is_global)
        return _native.from_json(data) if content_type == _JSON else data

    def __setitem__(self, name: str, value: Any) -> None:
        """Store a program, replacing one of the same name."""
        self.put(name, value)

    def __delitem__(self, name: str) -> None:
        """Delete a program. Raises what fetching it does."""
        self._call.delete_program(_checked.name("name", name), self._is_global)

    def __contains__(self, name: object) -> bool:
        """Whether there is a program of this name; its data stays with the host."""
        return name in self._call.list_programs(self._is_global)

    def __iter__(self) -> Iterator[str]:
        """Go through the names, in order."""
        return iter(self._call.list_programs(self._is_global))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._call.list_programs(self._is_global))


class GlobalPrograms(Programs):
    """The programs that belong to the host itself: every session sees them. Unused ones expire after a while."""

    __slots__ = ()

    _is_global = True

    def put(self, name: str, value: Any, metadata: dict[str, str] | None = None, ttl: int | None = None) -> bool:
        """Store a program, replacing one of the same name. Says whether the name was new.

        Args:
            name: Its name.
            value: ``bytes``, or what has a JSON form.
            metadata: What to attach to it.
            ttl: Seconds without use after which the host forgets it; the host's default without it.
        """
        if ttl is not None:
            ttl = _checked.integer("ttl", ttl, "an int or None", least=1)
        return self._put(name, value, metadata, ttl)
