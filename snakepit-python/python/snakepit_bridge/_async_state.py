"""Variables and programs of a session for coroutines."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, TypeVar

from snakepit_bridge import _checked, _native, programs
from snakepit_bridge._connection import in_background
from snakepit_bridge.batch import AsyncBatch
from snakepit_bridge.errors import (
    AlreadyExistsError,
    VariableNotFoundError,
    VersionConflictError,
)
from snakepit_bridge.variables import UPDATE_TIMEOUT, SessionVariables, raise_rejected, values_of
from snakepit_bridge.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from snakepit_bridge._call import CallLike
    from snakepit_bridge._native import Variable, VariableVersion

_T = TypeVar("_T")


class AsyncVariables:
    """The variables of a session, with the methods of :class:`SessionVariables` as coroutines.

    They have the same arguments and errors. Cancelling the task ends the request. A cancelled write may have happened.
    Instead of ``session["rate"]`` and ``session["rate"] = 0.5``, write ``await session.get_variable("rate")`` and
    ``await session.set("rate", 0.5)``.
    """

    __slots__ = ("_call",)

    def __init__(self, call: CallLike) -> None:
        self._call = call

    async def _request(self, request: Callable[[SessionVariables], _T]) -> _T:
        return await in_background(self._call, lambda call: request(SessionVariables(call)))

    async def register_variable(
        self,
        name: str,
        type: str | None,  # noqa: A002
        initial_value: Any,
        constraints: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Create a variable and return its id. See :meth:`SessionVariables.register_variable`."""
        return await self._request(
            lambda variables: variables.register_variable(name, type, initial_value, constraints, metadata)
        )

    async def get_variable(self, identifier: str) -> Any:
        """Return the value of a variable. Arrays are numpy arrays, lists are lists.

        Raises:
            VariableNotFoundError: The variable does not exist.
        """
        return (await self.variable(identifier)).value

    async def get(self, identifier: str, default: Any = None) -> Any:
        """Return the value of a variable, or ``default`` if it does not exist."""
        try:
            return await self.get_variable(identifier)
        except VariableNotFoundError:
            return default

    async def variable(self, identifier: str) -> Variable:
        """Return a snapshot of a variable. See :meth:`SessionVariables.variable`."""
        return await self._request(lambda variables: variables.variable(identifier))

    async def contains(self, identifier: str) -> bool:
        """Return whether a variable exists."""
        try:
            await self.variable(identifier)
        except VariableNotFoundError:
            return False
        return True

    async def set_variable(
        self,
        identifier: str,
        value: Any,
        metadata: Mapping[str, str] | None = None,
        *,
        expected_version: int | None = None,
    ) -> int:
        """Write an existing variable and return its new version. See :meth:`SessionVariables.set_variable`."""
        return await self._request(
            lambda variables: variables.set_variable(identifier, value, metadata, expected_version=expected_version)
        )

    async def set(self, identifier: str, value: Any) -> None:
        """Write a variable. Registers it with the type of the value if it does not exist."""
        while True:
            try:
                await self.set_variable(identifier, value)
                return
            except VariableNotFoundError:
                pass
            try:
                await self.register_variable(identifier, None, value)
                return
            except AlreadyExistsError:
                # Another writer registered it first.
                pass

    async def update(
        self,
        identifier: str,
        change: Callable[[Any], Any],
        *,
        retries: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Any:
        """Change a variable atomically, and return its new value. See :meth:`SessionVariables.update`.

        ``change`` is a synchronous function.
        """
        if not callable(change):
            raise _checked.wrong_type("change", change, "a function")
        if retries is not None:
            retries = _checked.integer("retries", retries, "an int or None")
        limit = self._call.time_remaining()
        end, pause = time.monotonic() + min(UPDATE_TIMEOUT, UPDATE_TIMEOUT if limit is None else limit), 1
        while True:
            attempt = time.monotonic()
            current = await self._until(end).variable(identifier)
            value = change(current.value)
            try:
                # By id and version: see `SessionVariables.update`.
                await self._until(end).set_variable(current.id, value, metadata, expected_version=current.version)
                return value
            except (VersionConflictError, VariableNotFoundError):
                now = time.monotonic()
                wait = os.urandom(1)[0] / 255 * pause * max(now - attempt, 0.001)
                if retries == 0 or now + wait >= end:
                    raise
                if retries is not None:
                    retries -= 1
                await asyncio.sleep(wait)
                pause = min(pause * 2, 16)

    def _until(self, end: float) -> AsyncVariables:
        """Return these variables with requests that end at ``end``."""
        del end
        return self

    async def delete_variable(self, identifier: str) -> None:
        """Delete a variable with its history. See :meth:`SessionVariables.delete_variable`."""
        await self._request(lambda variables: variables._variables.delete(_checked.name("identifier", identifier)))

    async def list_variables(self, pattern: str = "") -> list[Variable]:
        """Return the variables whose names match a pattern. See :meth:`SessionVariables.list_variables`."""
        return await self._request(lambda variables: variables.list_variables(pattern))

    async def get_variables(self, identifiers: Iterable[str]) -> dict[str, Any]:
        """Return the values of several variables in one request. See :meth:`SessionVariables.get_variables`."""
        names = _checked.names("identifiers", identifiers)
        return values_of(*await self._request(lambda variables: variables._variables.get_many(names)))

    async def set_variables(
        self,
        updates: Mapping[str, Any],
        *,
        atomic: bool = True,
        metadata: Mapping[str, str] | None = None,
        expected_versions: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        """Write several variables in one request. See :meth:`SessionVariables.set_variables`."""
        versions, errors = await self._request(
            lambda variables: variables._set_variables(updates, metadata, expected_versions, atomic=atomic)
        )
        raise_rejected(len(updates), versions, errors, atomic=atomic)
        return versions

    def batch_updates(self, atomic: bool = True, metadata: Mapping[str, str] | None = None) -> AsyncBatch:
        """Return an asynchronous context manager that collects writes and sends them at the end of its block.

        >>> async with session.batch_updates() as batch:  # doctest: +SKIP
        ...     batch["low"] = 1
        ...     batch["high"] = 2
        """
        return AsyncBatch(self.set_variables, atomic, metadata)

    async def variable_history(self, identifier: str, limit: int = 0) -> list[VariableVersion]:
        """Return the stored versions of a variable. See :meth:`SessionVariables.variable_history`."""
        return await self._request(lambda variables: variables.variable_history(identifier, limit))

    async def rollback_variable(self, identifier: str, version: int) -> Variable:
        """Write the value of an earlier version. See :meth:`SessionVariables.rollback_variable`."""
        return await self._request(lambda variables: variables.rollback_variable(identifier, version))

    async def watch(self, *identifiers: str, initial: bool = False) -> Watch:
        """Return an iterator over the updates of variables from now on. See :meth:`SessionVariables.watch`.

        >>> async with await session.watch("rate") as updates:  # doctest: +SKIP
        ...     async for update in updates:
        ...         print(update.kind, update.variable.value)
        """
        names = _checked.names("identifiers", identifiers)
        initial = _checked.flag("initial", initial)
        return Watch(await self._request(lambda variables: variables._variables.watch(names, initial)))


class AsyncPrograms:
    """The programs of a session, with the operations of :class:`Programs` as coroutines."""

    __slots__ = ("_call",)

    _is_global = False

    def __init__(self, call: CallLike) -> None:
        self._call = call

    async def put(self, name: str, value: Any, metadata: Mapping[str, str] | None = None) -> bool:
        """Store a program and return whether the name is new. Replaces a program of the same name.

        Args:
            name: The name.
            value: ``bytes``, or a value with a wire form.
            metadata: Metadata of the program.
        """
        return await self._put(name, value, metadata, None)

    async def _put(self, name: str, value: Any, metadata: Mapping[str, str] | None, ttl: int | None) -> bool:
        kind = programs.GlobalPrograms if self._is_global else programs.Programs
        entries = _checked.metadata(metadata)
        return await in_background(self._call, lambda call: kind(call)._put(name, value, entries, ttl))

    async def get(self, name: str) -> Any:
        """Return a program.

        Raises:
            ProgramNotFoundError: The program does not exist. A ``KeyError``, unlike the next error.
            NotFoundError: The session does not exist.
        """
        name = _checked.name("name", name)
        data, content_type = await in_background(self._call, lambda call: call.get_program(name, self._is_global))
        return _native.from_program(data, content_type)

    async def cached(self, name: str, loads: Callable[[Any], _T] | None = None, /, *, limit: int = 8) -> Any:
        """Return a program as an object that this process loads once for each version. See :meth:`Programs.cached`."""
        entry = programs.CacheEntry(self._call, self._is_global, name, loads, limit)
        changed = await in_background(
            self._call, lambda call: call.get_changed_program(entry.name, self._is_global, entry.version)
        )
        return entry.store(changed)

    async def delete(self, name: str) -> None:
        """Delete a program. Raises as :meth:`get` does."""
        name = _checked.name("name", name)
        await in_background(self._call, lambda call: call.delete_program(name, self._is_global))

    async def names(self) -> list[str]:
        """Return the sorted names."""
        listed: list[str] = await in_background(self._call, lambda call: call.list_programs(self._is_global))
        return listed

    async def contains(self, name: str) -> bool:
        """Return whether the program exists, without transferring its data."""
        return name in await self.names()


class AsyncGlobalPrograms(AsyncPrograms):
    """The host's own programs, shared by all sessions. Unused ones expire."""

    __slots__ = ()

    _is_global = True

    async def put(
        self, name: str, value: Any, metadata: Mapping[str, str] | None = None, ttl: int | None = None
    ) -> bool:
        """Store a program and return whether the name is new. Replaces a program of the same name.

        Args:
            name: The name.
            value: ``bytes``, or a value with a wire form.
            metadata: Metadata of the program.
            ttl: Seconds without use after which the host deletes the program. By default the host's setting.
        """
        if ttl is not None:
            ttl = _checked.integer("ttl", ttl, "an int or None", least=1)
        return await self._put(name, value, metadata, ttl)
