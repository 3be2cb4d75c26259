"""Variables: typed, versioned values of a session, stored by the host and shared by all tools of the session."""

from __future__ import annotations

import os
import time

from snakepit_bridge import _checked
from snakepit_bridge.errors import (
    AlreadyExistsError,
    BatchError,
    InvalidArgumentError,
    VariableNotFoundError,
    VersionConflictError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from snakepit_bridge._call import CallLike, VariablesLike
    from snakepit_bridge._native import Variable, VariableVersion
    from snakepit_bridge.batch import Batch
    from snakepit_bridge.errors import SnakepitError
    from snakepit_bridge.watch import Watch


#: The default time limit of `update`, in seconds. There is no limit on attempts, because each failed attempt means that
#: another writer succeeded.
UPDATE_TIMEOUT = 60.0


class VariableType:
    """The names of the variable types."""

    FLOAT = "float"
    INTEGER = "integer"
    STRING = "string"
    BOOLEAN = "boolean"
    CHOICE = "choice"
    MODULE = "module"
    EMBEDDING = "embedding"
    TENSOR = "tensor"
    MAP = "map"
    LIST = "list"
    BYTES = "bytes"


class SessionVariables:
    """The variables of a session. Base class of :class:`SessionContext` in tools and ``Session`` in clients.

    An *identifier* is the name or the id of a variable. Each operation is a request to the host, so all tools of a
    session read the same values. Other Python threads run during a request.

    >>> context["rate"] = 0.5  # doctest: +SKIP
    >>> context.update("count", lambda count: count + 1)  # doctest: +SKIP

    In addition to its own errors, each method raises:

    - ``NotFoundError`` if the session does not exist or has expired
    - ``InvalidArgumentError`` if the call has no session or an argument is out of range
    - ``InvalidTypeError``, a ``TypeError``, if an argument has the wrong type
    - ``DeadlineExceededError``, ``HostUnavailableError`` and ``CallCancelled`` as :meth:`SessionContext.call_host_tool`
    - ``ClientClosedError`` if the client is closed
    """

    __slots__ = ("_call",)

    def __init__(self, call: CallLike) -> None:
        self._call = call

    @property
    def _variables(self) -> VariablesLike:
        if not self._call.session_id:
            raise InvalidArgumentError("the call has no session, which variables belong to; call the tool with one")
        return self._call.variables()

    def register_variable(
        self,
        name: str,
        type: str | None,  # noqa: A002
        initial_value: Any,
        constraints: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Create a variable and return its id.

        >>> context.register_variable("rate", "float", 0.5, {"min": 0, "max": 1})  # doctest: +SKIP
        'var_...'

        Args:
            name: The name.
            type: The name of a type, such as :attr:`VariableType.FLOAT`. ``None`` infers it from the value.
            initial_value: The first value, which is version 0.
            constraints: Constraints for all values: ``min`` and ``max`` of numbers; ``min_length``, ``max_length``,
                ``pattern`` and ``enum`` of strings; ``choices``; ``allowed_modules``; ``dimensions`` of an embedding;
                ``shape`` of a tensor.
            metadata: Metadata of the variable.

        Raises:
            AlreadyExistsError: The session has a variable with this name.
            ValidationError: The value does not match the type or the constraints.
            InvalidArgumentError: The type does not exist, or the name or the constraints are invalid.
            LimitExceededError: The session or the host is full.
            InvalidTypeError: The value has no wire form.
        """
        return self._variables.register(
            _checked.name("name", name),
            None if type is None else _checked.text("type", type, "a str or None"),
            initial_value,
            None if constraints is None else _checked.mapping("constraints", constraints, "a mapping or None"),
            _checked.metadata(metadata),
        )

    def get_variable(self, identifier: str) -> Any:
        """Return the value of a variable. Arrays are numpy arrays, lists are lists.

        Raises:
            VariableNotFoundError: The variable does not exist.
        """
        return self.variable(identifier).value

    def get(self, identifier: str, default: Any = None) -> Any:
        """Return the value of a variable, or ``default`` if it does not exist."""
        try:
            return self.get_variable(identifier)
        except VariableNotFoundError:
            return default

    def variable(self, identifier: str) -> Variable:
        """Return a snapshot of a variable: its value, version, type, constraints and metadata.

        Raises:
            VariableNotFoundError: The variable does not exist.
        """
        return self._variables.get(_checked.name("identifier", identifier))

    def set_variable(
        self,
        identifier: str,
        value: Any,
        metadata: Mapping[str, str] | None = None,
        *,
        expected_version: int | None = None,
    ) -> int:
        """Write a variable and return its new version.

        Args:
            identifier: The name or id.
            value: The new value.
            metadata: Metadata of this version, merged into that of the variable.
            expected_version: The version that the variable must have. Otherwise nothing is written.

        Raises:
            VariableNotFoundError: The variable does not exist.
            ValidationError: The value does not match the type or the constraints.
            VersionConflictError: The variable is not at version ``expected_version``.
            LimitExceededError: The session or the host is full.
            InvalidTypeError: The value has no wire form.
        """
        return self._variables.set(
            _checked.name("identifier", identifier),
            value,
            _checked.metadata(metadata),
            _checked.version("expected_version", expected_version),
        )

    def update(
        self,
        identifier: str,
        change: Callable[[Any], Any],
        *,
        retries: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Any:
        """Change a variable atomically with compare-and-swap, and return its new value.

        >>> context.update("count", lambda count: count + 1)  # doctest: +SKIP
        8

        Args:
            identifier: The name or id.
            change: Computes the new value from the current one. It is called again after each conflict with another
                writer, so it should have no side effects.
            retries: The maximum number of additional attempts. By default, attempts continue for 60 seconds, or for the
                timeout of a client's session if that is shorter. The time limit covers all attempts together.
            metadata: Metadata of the new version.

        Raises:
            VariableNotFoundError: The variable does not exist.
            ValidationError: The new value does not match the type or the constraints.
            VersionConflictError: Each attempt conflicted with another writer.
        """
        if not callable(change):
            raise _checked.wrong_type("change", change, "a function")
        if retries is not None:
            retries = _checked.integer("retries", retries, "an int or None")
        limit = self._call.time_remaining()
        end, pause = time.monotonic() + min(UPDATE_TIMEOUT, UPDATE_TIMEOUT if limit is None else limit), 1
        while True:
            attempt = time.monotonic()
            current = self._until(end).variable(identifier)
            value = change(current.value)
            try:
                # Written by id, because a variable that was deleted and registered again may have the same name and
                # version.
                self._until(end).set_variable(current.id, value, metadata, expected_version=current.version)
                return value
            except (VersionConflictError, VariableNotFoundError):
                now = time.monotonic()
                # Random jitter keeps the same writers from conflicting again.
                wait = os.urandom(1)[0] / 255 * pause * max(now - attempt, 0.001)
                if retries == 0 or now + wait >= end:
                    raise
                if retries is not None:
                    retries -= 1
                time.sleep(wait)
                pause = min(pause * 2, 16)

    def _until(self, end: float) -> SessionVariables:
        """Return these variables with requests that end at ``end``.

        In a tool, the deadline of its call applies instead.
        """
        del end
        return self

    def delete_variable(self, identifier: str) -> None:
        """Delete a variable with its history.

        Raises:
            VariableNotFoundError: The variable does not exist.
        """
        self._variables.delete(_checked.name("identifier", identifier))

    def list_variables(self, pattern: str = "") -> list[Variable]:
        """Return the variables whose names match a pattern, sorted by name.

        Args:
            pattern: A name in which ``*`` matches any text. Empty for all variables.
        """
        return self._variables.find(_checked.text("pattern", pattern))

    def get_variables(self, identifiers: Iterable[str]) -> dict[str, Any]:
        """Return the values of several variables, by identifier, in one request.

        Raises:
            VariableNotFoundError: Variables are missing. The message names them.
        """
        return values_of(*self._variables.get_many(_checked.names("identifiers", identifiers)))

    def set_variables(
        self,
        updates: Mapping[str, Any],
        *,
        atomic: bool = True,
        metadata: Mapping[str, str] | None = None,
        expected_versions: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        """Write several variables in one request, and return their new versions by identifier.

        Args:
            updates: The new values by name or id.
            atomic: Whether to write either all or none. Otherwise each write succeeds or fails separately.
            metadata: Metadata of the new versions.
            expected_versions: The versions that variables must have. Other variables are not checked.

        Raises:
            BatchError: Writes were rejected. Its ``errors`` are the exceptions that :meth:`set_variable` would raise.
            InvalidTypeError: A value has no wire form. Nothing was written.
        """
        versions, errors = self._set_variables(updates, metadata, expected_versions, atomic=atomic)
        raise_rejected(len(updates), versions, errors, atomic=atomic)
        return versions

    def _set_variables(
        self,
        updates: Mapping[str, Any],
        metadata: Mapping[str, str] | None,
        expected_versions: Mapping[str, int] | None,
        *,
        atomic: bool,
    ) -> tuple[dict[str, int], dict[str, SnakepitError]]:
        return self._variables.set_many(
            _checked.mapping("updates", updates),
            _checked.metadata(metadata),
            _checked.versions("expected_versions", expected_versions),
            _checked.flag("atomic", atomic),
        )

    def batch_updates(self, atomic: bool = True, metadata: Mapping[str, str] | None = None) -> Batch:
        """Return a context manager that collects writes and sends them at the end of its block.

        >>> with context.batch_updates() as batch:  # doctest: +SKIP
        ...     batch["low"] = 1
        ...     batch["high"] = 2

        The end of the block raises as :meth:`set_variables` does. If the block raises, nothing is sent.

        Args:
            atomic: Whether to write either all or none. Otherwise each write succeeds or fails separately.
            metadata: Metadata of the new versions.
        """
        from snakepit_bridge.batch import Batch

        return Batch(self.set_variables, atomic, metadata)

    def variable_history(self, identifier: str, limit: int = 0) -> list[VariableVersion]:
        """Return the stored versions of a variable, newest first.

        Args:
            identifier: The name or id.
            limit: The maximum number of versions. 0 for all.

        Raises:
            VariableNotFoundError: The variable does not exist.
        """
        return self._variables.history(_checked.name("identifier", identifier), _checked.integer("limit", limit))

    def rollback_variable(self, identifier: str, version: int) -> Variable:
        """Write the value of an earlier version as a new version, and return the variable.

        Raises:
            VariableNotFoundError: The variable does not exist.
            NotFoundError: The version does not exist or is no longer stored.
        """
        return self._variables.rollback(_checked.name("identifier", identifier), _checked.integer("version", version))

    def watch(self, *identifiers: str, initial: bool = False) -> Watch:
        """Return an iterator over the updates of variables from now on, for ``for`` and ``async for``.

        >>> with context.watch("rate") as updates:  # doctest: +SKIP
        ...     for update in updates:
        ...         print(update.kind, update.variable.value)

        Args:
            identifiers: Names or ids. Without any, watches all variables of the session, including those registered
                later. A name also matches a variable that is deleted and registered again.
            initial: Whether to start with one update for the current value of each variable.

        Raises:
            VariableNotFoundError: One of the variables does not exist.
            LimitExceededError: The session has too many watches.
        """
        from snakepit_bridge.watch import Watch

        return Watch(
            self._variables.watch(_checked.names("identifiers", identifiers), _checked.flag("initial", initial))
        )

    @property
    def v(self) -> VariableNamespace:
        """The variables as attributes: ``context.v.rate = 0.5``."""
        return VariableNamespace(self)

    def __getitem__(self, identifier: str) -> Any:
        """Return the value of a variable. Raises ``VariableNotFoundError``, a ``KeyError``, if it does not exist."""
        return self.get_variable(identifier)

    def __setitem__(self, identifier: str, value: Any) -> None:
        """Write a variable. Registers it with the type of the value if it does not exist."""
        while True:
            try:
                self.set_variable(identifier, value)
                return
            except VariableNotFoundError:
                pass
            try:
                self.register_variable(identifier, None, value)
                return
            except AlreadyExistsError:
                # Another tool registered it first.
                pass

    def __delitem__(self, identifier: str) -> None:
        """Delete a variable. Raises ``VariableNotFoundError``, a ``KeyError``, if it does not exist."""
        self.delete_variable(identifier)

    def __contains__(self, identifier: object) -> bool:
        """Return whether the variable exists."""
        if not isinstance(identifier, str) or not identifier:
            return False
        try:
            self.variable(identifier)
        except VariableNotFoundError:
            return False
        return True

    # Otherwise Python would iterate over variables named 0, 1, 2.
    __iter__ = None

    # Names of the original Snakepit's Python package.
    update_variable = set_variable

    def update_variables(
        self, updates: Mapping[str, Any], atomic: bool = False, metadata: Mapping[str, str] | None = None
    ) -> dict[str, bool | str]:
        """Write several variables. Return, by identifier, ``True`` or the message of the error."""
        versions, errors = self._set_variables(updates, metadata, None, atomic=atomic)
        return {**dict.fromkeys(versions, True), **{name: str(error) for name, error in errors.items()}}


def values_of(found: Mapping[str, Variable], missing: list[str]) -> dict[str, Any]:
    """Return the values of variables.

    Raises:
        VariableNotFoundError: Variables are missing.
    """
    if missing:
        plural = "s" if len(missing) > 1 else ""
        names = ", ".join(f"`{identifier}`" for identifier in missing)
        raise VariableNotFoundError(f"variable{plural} {names} not found")
    return {identifier: variable.value for identifier, variable in found.items()}


def raise_rejected(count: int, versions: dict[str, int], errors: dict[str, SnakepitError], *, atomic: bool) -> None:
    """Raise ``BatchError`` if the host rejected some of the writes of a batch."""
    if errors:
        outcome = "nothing was written" if atomic else f"{len(versions)} of {count} were written"
        raise BatchError(f"{outcome}: {'; '.join(map(str, errors.values()))}", errors, versions)


class VariableNamespace:
    """The variables of a session as attributes. A missing variable raises ``AttributeError``."""

    __slots__ = ("_context",)

    _context: SessionVariables

    def __init__(self, context: SessionVariables) -> None:
        object.__setattr__(self, "_context", context)

    def __getattr__(self, name: str) -> Any:
        """Return the value of a variable."""
        if name.startswith("__"):
            # Python itself looks up these names. Each lookup would be a request to the host.
            raise AttributeError(name)
        try:
            return self._context[name]
        except VariableNotFoundError as error:
            raise AttributeError(str(error), name=name, obj=self) from error

    def __setattr__(self, name: str, value: Any) -> None:
        """Write a variable. Registers it if it does not exist."""
        self._context[name] = value

    def __delattr__(self, name: str) -> None:
        """Delete a variable."""
        try:
            del self._context[name]
        except VariableNotFoundError as error:
            raise AttributeError(str(error), name=name, obj=self) from error
