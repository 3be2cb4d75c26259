"""Programs: named blobs, such as trained models, that the host stores."""

from __future__ import annotations

# `_checked` explains why this is not imported from `collections.abc`.
from _collections_abc import MutableMapping

from snakepit_bridge import _checked, _current, _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, ClassVar, TypeVar

    from snakepit_bridge._call import CallLike

    _T = TypeVar("_T")

_OCTETS = "application/octet-stream"


class Programs(MutableMapping[str, "Any"]):
    """The programs of a session, as a mutable mapping. Each operation is a request to the host.

    ``bytes`` are stored unchanged. Other values are stored as JSON with buffers, and reads return equal objects.

    >>> context.programs["model"] = model_bytes  # doctest: +SKIP
    >>> context.programs["model"]  # doctest: +SKIP
    b'...'
    """

    __slots__ = ("_call",)

    _is_global: ClassVar[bool] = False

    def __init__(self, call: CallLike) -> None:
        self._call = call

    def put(self, name: str, value: Any, metadata: dict[str, str] | None = None) -> bool:
        """Store a program and return whether the name is new. Replaces a program of the same name.

        Args:
            name: The name.
            value: ``bytes``, or a value with a wire form.
            metadata: Metadata of the program.
        """
        return self._put(name, value, metadata, None)

    def _put(self, name: str, value: Any, metadata: dict[str, str] | None, ttl: int | None) -> bool:
        name = _checked.name("name", name)
        if isinstance(value, bytes | bytearray | memoryview):
            data, content_type = value, _OCTETS
        else:
            data, content_type = _native.to_program(value, f"program {name!r}")
        return self._call.put_program(
            name, data, content_type, _checked.metadata(metadata), is_global=self._is_global, ttl_seconds=ttl
        )

    def __getitem__(self, name: str) -> Any:
        """Return a program.

        Raises:
            ProgramNotFoundError: The program does not exist. A ``KeyError``, unlike the next error.
            NotFoundError: The session does not exist.
        """
        data, content_type = self._call.get_program(_checked.name("name", name), self._is_global)
        return _native.from_program(data, content_type)

    def cached(self, name: str, loads: Callable[[Any], _T] | None = None, /, *, limit: int = 8) -> Any:
        """Return a program as an object that this worker loads once for each version of the program.

        Each call asks the host whether the program has changed, and transfers it only then. All calls of the worker
        share the object, so do not change it.

        >>> model = context.programs.cached("model", pickle.loads)  # doctest: +SKIP

        Args:
            name: The name.
            loads: Creates the object from ``programs[name]``. Not a part of the key: use the same one for a name.
                Without it, the object is ``programs[name]``.
            limit: The maximum number of objects that the worker keeps, of all sessions. It drops the least recently
                used ones.

        Raises the errors of reading the program. Errors of ``loads`` propagate.
        """
        entry = CacheEntry(self._call, self._is_global, name, loads, limit)
        return entry.store(self._call.get_changed_program(entry.name, self._is_global, entry.version))

    def __setitem__(self, name: str, value: Any) -> None:
        """Store a program. Replaces a program of the same name."""
        self.put(name, value)

    def __delitem__(self, name: str) -> None:
        """Delete a program. Raises as reading it does."""
        self._call.delete_program(_checked.name("name", name), self._is_global)

    def __contains__(self, name: object) -> bool:
        """Return whether the program exists, without transferring its data."""
        return name in self._call.list_programs(self._is_global)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the sorted names."""
        return iter(self._call.list_programs(self._is_global))

    def __len__(self) -> int:
        """Return the number of programs."""
        return len(self._call.list_programs(self._is_global))


class GlobalPrograms(Programs):
    """The host's own programs, shared by all sessions. Unused ones expire."""

    __slots__ = ()

    _is_global = True

    def put(self, name: str, value: Any, metadata: dict[str, str] | None = None, ttl: int | None = None) -> bool:
        """Store a program and return whether the name is new. Replaces a program of the same name.

        Args:
            name: The name.
            value: ``bytes``, or a value with a wire form.
            metadata: Metadata of the program.
            ttl: Seconds without use after which the host deletes the program. By default the host's setting.
        """
        if ttl is not None:
            ttl = _checked.integer("ttl", ttl, "an int or None", least=1)
        return self._put(name, value, metadata, ttl)


class CacheEntry:
    """The object of a program in the cache of the process, while the host is asked for a newer version."""

    def __init__(
        self, call: CallLike, is_global: bool, name: str, loads: Callable[[Any], Any] | None, limit: int
    ) -> None:
        self.name = _checked.name("name", name)
        self._limit = _checked.integer("limit", limit)
        if loads is not None and not callable(loads):
            raise _checked.wrong_type("loads", loads, "a function or None")
        self._loads = loads
        self._key = (None if is_global else call.session_id, self.name)
        self._known = _current.process_cache().pop(self._key, None)

    @property
    def version(self) -> tuple[int, int] | None:
        """The version of the object."""
        return None if self._known is None else self._known[0]

    def store(self, changed: tuple[bytes, str, tuple[int, int]] | None) -> Any:
        """Return the object, loaded from the newer version if there is one."""
        if changed is not None:
            # Dropped first, because both versions together may not fit into memory.
            self._known = None
            data, content_type, version = changed
            value = _native.from_program(data, content_type)
            self._known = (version, value if self._loads is None else self._loads(value))
        cache = _current.process_cache()
        # The first entry is the least recently used one.
        cache[self._key] = self._known
        while len(cache) > self._limit:
            del cache[next(iter(cache))]
        return self._known[1]
