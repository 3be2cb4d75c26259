"""Variables: typed, versioned values of a session that the host keeps and all tools of the session share."""

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


# How long `update` goes on by default, in seconds. With each failure somebody else succeeded.
_UPDATE_TIMEOUT = 60.0


class VariableType:
    """The names of the types that variables have."""

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


class SessionVariables:
    """The variables of a session: one part of a tool's :class:`SessionContext`, and of a client's ``Session``.

    An identifier is a variable's name or its id. Every operation asks the host, so all tools of a session see the same;
    other Python threads go on meanwhile. Beside what is said of each, all of them raise ``NotFoundError`` when the
    session is gone, ``InvalidArgumentError`` when the call has none or an argument is out of range, ``TypeError`` when
    one is of the wrong type, and ``DeadlineExceededError``, ``HostUnavailableError`` and ``CallCancelled`` as
    :meth:`SessionContext.call_host_tool` does; a closed client's raise ``RuntimeError``.
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
        """Make a variable, and return its id.

        Args:
            name: Its name.
            type: The name of its type; ``None`` infers it from the value.
            initial_value: Its first value, version 0.
            constraints: What its values must keep to: ``min`` and ``max`` of numbers; ``min_length``, ``max_length``,
                ``pattern`` and ``enum`` of strings; ``choices``; ``allowed_modules``; ``dimensions`` of an embedding;
                ``shape`` of a tensor.
            metadata: What to attach to it.

        Raises:
            AlreadyExistsError: The session has a variable of this name.
            ValidationError: The value is not of the type, or outside the constraints.
            InvalidArgumentError: There is no such type, or the name or the constraints are odd.
            LimitExceededError: The session or the host is full.
            TypeError: The value has no wire form.
        """
        return self._variables.register(
            _checked.name("name", name),
            None if type is None else _checked.text("type", type, "a str or None"),
            initial_value,
            None if constraints is None else _checked.mapping("constraints", constraints, "a mapping or None"),
            _checked.metadata(metadata),
        )

    def get_variable(self, identifier: str) -> Any:
        """Return a variable's value. Arrays come back as numpy arrays, lists as lists.

        Raises:
            VariableNotFoundError: There is none.
        """
        return self.variable(identifier).value

    def get(self, identifier: str, default: Any = None) -> Any:
        """Return a variable's value, or the default if there is none."""
        try:
            return self.get_variable(identifier)
        except VariableNotFoundError:
            return default

    def variable(self, identifier: str) -> Variable:
        """Return a variable as it is now: its value with its version, type, constraints and metadata.

        Raises:
            VariableNotFoundError: There is none.
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
        """Write a variable, and return its new version.

        Args:
            identifier: Its name or id.
            value: The new value.
            metadata: What to attach to this version; merged into the variable's own.
            expected_version: Write only if the variable is at this version.

        Raises:
            VariableNotFoundError: There is none.
            ValidationError: The value is not of its type, or outside its constraints.
            VersionConflictError: It is at another version than the one expected.
            LimitExceededError: The session or the host is full.
            TypeError: The value has no wire form.
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
        """Change a variable in one step, whoever else writes it at the same time, and return its new value.

        Args:
            identifier: Its name or id.
            change: Makes the new value of the current one. It is called again when the variable was written meanwhile,
                so it should do nothing else.
            retries: How many times at most it is called again; by default as often as a minute allows, or the
                timeout of a client's session, if that is shorter: it holds for all of them together.
            metadata: What to attach to the new version.

        Raises:
            VariableNotFoundError: There is none.
            ValidationError: The new value is not of its type, or outside its constraints.
            VersionConflictError: It was written meanwhile, each time.
        """
        if not callable(change):
            raise _checked.unfit("change", change, "a function")
        if retries is not None:
            retries = _checked.integer("retries", retries, "an int or None")
        limit = self._call.time_remaining()
        end, pause = time.monotonic() + min(_UPDATE_TIMEOUT, _UPDATE_TIMEOUT if limit is None else limit), 1
        while True:
            attempt = time.monotonic()
            current = self._until(end).variable(identifier)
            value = change(current.value)
            try:
                # By its id: one that was deleted and registered anew is another variable, if maybe at the same version.
                self._until(end).set_variable(current.id, value, metadata, expected_version=current.version)
                return value
            except (VersionConflictError, VariableNotFoundError):
                now = time.monotonic()
                # At random, so that those who got into each other's way do not do so again.
                wait = os.urandom(1)[0] / 255 * pause * max(now - attempt, 0.001)
                if retries == 0 or now + wait >= end:
                    raise
                if retries is not None:
                    retries -= 1
                time.sleep(wait)
                pause = min(pause * 2, 16)

    def _until(self, end: float) -> SessionVariables:
        """Get these variables, with no more time for each request than until then. A tool has its own deadline."""
        del end
        return self

    def delete_variable(self, identifier: str) -> None:
        """Delete a variable with its history.

        Raises:
            VariableNotFoundError: There is none.
        """
        self._variables.delete(_checked.name("identifier", identifier))

    def list_variables(self, pattern: str = "") -> list[Variable]:
        """Return the variables whose names match, in the order of their names.

        Args:
            pattern: A name in which ``*`` stands for any text; empty for all variables.
        """
        return self._variables.find(_checked.text("pattern", pattern))

    def get_variables(self, identifiers: Iterable[str]) -> dict[str, Any]:
        """Return the values of several variables by one request, by the identifiers given.

        Raises:
            VariableNotFoundError: Some are missing; the message names them.
        """
        found, missing = self._variables.get_many(_checked.names("identifiers", identifiers))
        if missing:
            plural = "s" if len(missing) > 1 else ""
            names = ", ".join(f"`{identifier}`" for identifier in missing)
            raise VariableNotFoundError(f"variable{plural} {names} not found")
        return {identifier: variable.value for identifier, variable in found.items()}

    def set_variables(
        self,
        updates: Mapping[str, Any],
        *,
        atomic: bool = True,
        metadata: Mapping[str, str] | None = None,
        expected_versions: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        """Write several variables by one request, and return their new versions by the identifiers given.

        Args:
            updates: The new values by name or id.
            atomic: Whether all of them are written or none; else each for itself.
            metadata: What to attach to the new versions.
            expected_versions: The versions that these variables must be at; others are not checked.

        Raises:
            BatchError: Some were refused: there is none, the value is wrong, or the version is another. Its ``errors``
                are what :meth:`set_variable` would raise for each.
            TypeError: A value has no wire form. Nothing was written.
        """
        versions, errors = self._set_variables(updates, metadata, expected_versions, atomic=atomic)
        if errors:
            outcome = "nothing was written" if atomic else f"{len(versions)} of {len(updates)} were written"
            raise BatchError(f"{outcome}: {'; '.join(map(str, errors.values()))}", errors, versions)
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
        """Return a context manager that collects writes, and sends them together when its block is left.

        >>> with context.batch_updates() as batch:  # doctest: +SKIP
        ...     batch["low"] = 1
        ...     batch["high"] = 2

        Leaving it raises what :meth:`set_variables` does. When the block raises, nothing is sent.

        Args:
            atomic: Whether all of them are written or none; else each for itself.
            metadata: What to attach to the new versions.
        """
        from snakepit_bridge.batch import Batch

        return Batch(self, atomic, metadata)

    def variable_history(self, identifier: str, limit: int = 0) -> list[VariableVersion]:
        """Return the versions of a variable that the host keeps, the newest first.

        Args:
            identifier: Its name or id.
            limit: At most how many; 0 for all.

        Raises:
            VariableNotFoundError: There is none.
        """
        return self._variables.history(_checked.name("identifier", identifier), _checked.integer("limit", limit))

    def rollback_variable(self, identifier: str, version: int) -> Variable:
        """Write the value of an earlier version once more, which makes a new version, and return the variable.

        Raises:
            VariableNotFoundError: There is none.
            NotFoundError: The version is no longer kept, or never was.
        """
        return self._variables.rollback(_checked.name("identifier", identifier), _checked.integer("version", version))

    def watch(self, *identifiers: str, initial: bool = False) -> Watch:
        """Return the updates of variables, from now on, as an iterator for ``for`` and ``async for``.

        Args:
            identifiers: Names or ids; none for all variables of the session, those registered later too. A name stands
                for whatever variable has it, also one that is registered anew.
            initial: Whether to begin with an update for each variable as it is now.

        Raises:
            VariableNotFoundError: One of them does not exist.
            LimitExceededError: There are too many watches on the session.
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
        """Return a variable's value. The error when there is none is a ``KeyError`` too."""
        return self.get_variable(identifier)

    def __setitem__(self, identifier: str, value: Any) -> None:
        """Write a variable; when there is none, register it, with the type that the value has."""
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
                # Another tool was quicker.
                pass

    def __delitem__(self, identifier: str) -> None:
        """Delete a variable with its history. The error when there is none is a ``KeyError`` too."""
        self.delete_variable(identifier)

    def __contains__(self, identifier: object) -> bool:
        """Whether there is such a variable."""
        if not isinstance(identifier, str) or not identifier:
            return False
        try:
            self.variable(identifier)
        except VariableNotFoundError:
            return False
        return True

    # Python would go through variables named 0, 1, 2.
    __iter__ = None

    # The names of the original protocol's Python package.
    update_variable = set_variable

    def update_variables(
        self, updates: Mapping[str, Any], atomic: bool = False, metadata: Mapping[str, str] | None = None
    ) -> dict[str, bool | str]:
        """Write several variables, and return by their identifiers ``True``, or why one was refused."""
        versions, errors = self._set_variables(updates, metadata, None, atomic=atomic)
        return {**dict.fromkeys(versions, True), **{name: str(error) for name, error in errors.items()}}


class VariableNamespace:
    """The variables of a session as attributes. Reading one that is not there is an ``AttributeError``."""

    __slots__ = ("_context",)

    _context: SessionVariables

    def __init__(self, context: SessionVariables) -> None:
        object.__setattr__(self, "_context", context)

    def __getattr__(self, name: str) -> Any:
        """Return a variable's value."""
        if name.startswith("__"):
            # Python itself looks for these, and would ask the host for each.
            raise AttributeError(name)
        try:
            return self._context[name]
        except VariableNotFoundError as error:
            raise AttributeError(str(error), name=name, obj=self) from error

    def __setattr__(self, name: str, value: Any) -> None:
        """Write a variable; when there is none, register it."""
        self._context[name] = value

    def __delattr__(self, name: str) -> None:
        """Delete a variable."""
        try:
            del self._context[name]
        except VariableNotFoundError as error:
            raise AttributeError(str(error), name=name, obj=self) from error
