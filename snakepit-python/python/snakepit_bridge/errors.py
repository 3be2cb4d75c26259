"""The exceptions of this package.

Attributes of each exception show whether a retry is safe and may succeed: ``is_retryable``, and its parts
``may_have_run`` and ``is_transient``. ``retry_after`` is the pause in seconds that the host asks for. All exceptions
can be pickled and copied.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    _ExceptionClass = type[Exception]


class SnakepitError(Exception):
    """Base class of all call and request errors.

    Args:
        args: The message.
        retry_after: Seconds after which a retry may succeed.
        may_have_run: Whether the call may have had an effect. The default depends on the class.
    """

    #: Seconds after which a retry may succeed. ``None`` without a hint from the host.
    retry_after: float | None = None
    #: Whether the tool may have run, or the write may have happened. If ``False``, a retry is safe.
    may_have_run: bool = True
    #: Whether the cause may disappear, such as a full queue or a lost connection.
    is_transient: bool = False

    @property
    def is_retryable(self) -> bool:
        """Whether a retry is safe and may succeed. Wait for ``retry_after`` first.

        An idempotent call can be repeated after all errors that are transient.
        """
        return self.is_transient and not self.may_have_run

    def __init__(self, *args: object, retry_after: float | None = None, may_have_run: bool | None = None) -> None:
        super().__init__(*args)
        if retry_after is not None:
            self.retry_after = retry_after
        if may_have_run is not None:
            self.may_have_run = may_have_run

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy without calling ``__init__``, whose parameters differ from ``args``."""
        return _restore, (type(self), self.args), self.__dict__


def _restore(cls: type[SnakepitError], args: tuple[object, ...]) -> SnakepitError:
    error = cls.__new__(cls)
    SnakepitError.__init__(error, *args)
    return error


class HostToolError(SnakepitError):
    """A host tool ran and failed. The message is that of the tool."""

    def __init__(
        self, message: str, tool_name: str = "", *, type_name: str = "", code: str = "", data: Any = None
    ) -> None:
        super().__init__(message)
        #: The name of the host tool.
        self.tool_name = tool_name
        #: The name of the tool's error type in Rust.
        self.type_name = type_name
        #: The tool's name for the error, such as ``not_found``. Empty if there is none.
        self.code = code
        #: The value that the tool attached to the error.
        self.data = data


class ToolError(Exception):
    """An error that a tool raises to send a code and data to its caller.

    >>> raise ToolError("no such item", code="not_found", data={"left": 3})  # doctest: +SKIP

    Callers in Rust and Python receive the code, the data, and the name of the class, which may be a subclass. Any other
    exception class can publish attributes. List their names in ``__snakepit_attributes__``:

    >>> class OutOfStock(Exception):
    ...     __snakepit_attributes__ = ("item", "left")

    Values without a JSON form are left out. A code that is the name of a gRPC code in lower case, such as
    ``not_found`` or ``permission_denied``, also determines the gRPC code and the HTTP status of the error.

    Args:
        message: The message.
        code: A name of the error for programs.
        data: Any value with a JSON form. Keep it below 2 KiB in a tool that streams.
    """

    def __init__(self, message: str = "", *, code: str = "", data: Any = None) -> None:
        super().__init__(message)
        #: A name of the error for programs. Empty if there is none.
        self.code = code
        #: The value for the caller.
        self.data = data


class NotFoundError(SnakepitError, LookupError):
    """The tool, the session, the program, or the version of a variable does not exist."""

    may_have_run = False


class VariableNotFoundError(NotFoundError, KeyError):
    """The variable does not exist in the session."""

    # `KeyError.__str__` would quote the message.
    __str__ = Exception.__str__


class ProgramNotFoundError(NotFoundError, KeyError):
    """The program does not exist."""

    __str__ = Exception.__str__


class AlreadyExistsError(SnakepitError):
    """The session already has a variable with this name."""

    may_have_run = False


class InvalidArgumentError(SnakepitError, ValueError):
    """An argument is invalid: an address, a name, a number, a size, the constraints of a variable.

    Also raised for arguments of tools and values of variables that cannot be sent.
    """

    may_have_run = False
    #: The path and the problem of each invalid argument of a tool, as in ``("items[3].price", "is missing")``.
    violations: Sequence[tuple[str, str]] = ()


class InvalidTypeError(InvalidArgumentError, TypeError):
    """An argument has the wrong type, or a type that cannot be sent."""


class UnsupportedError(SnakepitError):
    """The tool does not support this kind of call, such as ``call`` for a generator.

    Also raised if the host does not support a request.
    """

    may_have_run = False


class ValidationError(InvalidArgumentError):
    """A value does not match the type or the constraints of its variable."""


class VersionConflictError(SnakepitError):
    """A variable is not at the version that the write expected, because another write changed it."""

    may_have_run = False

    def __init__(self, message: str, expected: int, actual: int) -> None:
        super().__init__(message)
        #: The version that the write expected.
        self.expected = expected
        #: The current version of the variable.
        self.actual = actual


class BatchError(SnakepitError):
    """Some writes of a batch were rejected. An atomic batch then writes nothing."""

    def __init__(self, message: str, errors: dict[str, SnakepitError], versions: dict[str, int]) -> None:
        super().__init__(message)
        #: The error of each rejected write, by identifier: the exception that a single write would raise. For hosts of
        #: the original Snakepit, which send only messages, each is a plain ``SnakepitError``.
        self.errors = errors
        #: The new versions of the variables that were written.
        self.versions = versions
        self.may_have_run = bool(versions)


class AccessDeniedError(SnakepitError, PermissionError):
    """The host, or a proxy in front of it, denied access. The answer to a repeated request stays the same."""

    may_have_run = False


class LimitExceededError(SnakepitError):
    """A limit of the host was exceeded: of one session, of all sessions, or of one answer."""

    may_have_run = False


class DeadlineExceededError(SnakepitError, TimeoutError):
    """The deadline passed before the host answered.

    ``may_have_run`` is ``False`` if the call was still queued.
    """

    is_transient = True


class DeadlockError(SnakepitError):
    """The call would wait for itself: every worker runs a call that waits for this one."""

    may_have_run = False


class HostUnavailableError(SnakepitError, ConnectionError):
    """The host or its session backend cannot be reached, or there is no host.

    ``may_have_run`` is ``False`` if connecting failed or no worker was available. It is ``True`` if the connection
    broke later. Then a write may have happened: read the variable first, and repeat the write with
    ``expected_version``.
    """

    is_transient = True


class OverloadedError(HostUnavailableError):
    """The host's queue is full, or another limit on its load is reached. The call did not run."""

    may_have_run = False


class WorkerLostError(HostUnavailableError):
    """The worker process exited or was killed before the call ended. Other workers are not affected."""


class ShuttingDownError(HostUnavailableError):
    """The host is shutting down. It rejected the call, or ended a running call or watch."""


class ConnectTimeoutError(HostUnavailableError, DeadlineExceededError):
    """The host did not answer within ``connect_timeout``."""

    may_have_run = False


class ClientClosedError(SnakepitError, RuntimeError):
    """The client is closed.

    ``may_have_run`` is ``True`` for calls that ``close(timeout=..)`` ended.
    """

    may_have_run = False


class CallCancelledError(SnakepitError):
    """The host reports the call as cancelled, but this program did not cancel it."""


class CallCancelled(BaseException):
    """The call that this code serves was cancelled. Do not catch it.

    Raised in synchronous functions and generators, at any point. Coroutines receive ``asyncio.CancelledError`` instead.
    It is a ``BaseException``, so that ``except Exception`` around a loop or a retry does not catch it. No caller waits
    for the result, so clean up in ``finally`` and return. If the tool continues, the host kills its worker.
    """


class ToolFailed(SnakepitError):  # noqa: N818
    """A tool raised an exception. A traceback of this error includes that of the tool.

    If the program has imported the class of the tool's exception, this error is also an instance of that class, so
    ``except OutOfStock`` catches it. :class:`Client` describes the rule. Its ``__cause__``, ``__context__`` and
    ``__notes__`` are those of the tool's exception, and a group is an ``ExceptionGroup``.

    An attribute of the tool's own class with the same name replaces one of these. ``failure`` always has all of them.
    """

    def __init__(
        self,
        type: str,  # noqa: A002
        message: str,
        traceback: str = "",
        code: str = "",
        data: Any = None,
        exception_args: Iterable[Any] = (),
        attributes: Mapping[str, Any] | None = None,
        omitted: Iterable[str] = (),
        notes: Iterable[str] = (),
        links: Mapping[str, Any] | None = None,
        classes: tuple[_ExceptionClass, ...] | None = None,
    ) -> None:
        super().__init__(": ".join(part for part in (type, message) if part))
        #: The name of the exception's type, with its module unless it is a builtin.
        self.type = type
        #: The message of the exception.
        self.message = message
        #: The formatted traceback, as the host received it. Empty if the host does not show tracebacks to this client.
        self.traceback = traceback
        #: The tool's name for the error, such as ``not_found``. Empty if there is none. See :class:`ToolError`.
        self.code = code
        #: The value that the tool attached to the error.
        self.data = data
        #: The arguments of the exception, without those that have no JSON form.
        self.exception_args = tuple(exception_args)
        #: The attributes that the exception's class publishes in ``__snakepit_attributes__``, by name.
        self.attributes = dict(attributes or {})
        #: The fields that were left out because they are too large: ``args``, ``attributes``, ``data``, ``notes``,
        #: ``cause``, ``context``, ``exceptions``.
        self.omitted = tuple(omitted)
        if found := list(notes):
            self.__notes__ = found
        self._links = dict(links or {})
        self._classes = classes
        self._show_traceback()

    @property
    def failure(self) -> ToolFailed:
        """The error as a plain ``ToolFailed`` with all fields that the host sent."""
        return self

    def __setstate__(self, state: dict[str, Any] | None) -> None:
        """Restore the traceback and the causes after pickling or copying."""
        super().__setstate__(state)
        self._show_traceback()

    def _show_traceback(self) -> None:
        if self._links:
            from snakepit_bridge import _remote_errors

            _remote_errors.link(self, self._links, self._classes)
        elif self.traceback:
            self.__cause__ = RemoteTraceback(self.traceback)


class RemoteTraceback(Exception):  # noqa: N818
    """The cause of a :class:`ToolFailed`, which prints the tool's traceback. Never raised."""

    def __str__(self) -> str:
        """Return the traceback on separate lines."""
        return f'\n"""\n{self.args[0]}"""'
