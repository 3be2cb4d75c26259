"""The exceptions of this package.

Each says whether a retry is safe: ``may_have_run`` is ``False`` if the call or request surely had no effect, and
``retry_after`` is the pause that the host asks for. All of them can be pickled and copied.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class SnakepitError(Exception):
    """Any failure of a call to the host.

    Args:
        args: The message.
        retry_after: Seconds.
        may_have_run: Whether the call may have had an effect; the default depends on the class.
    """

    #: Seconds after which a retry may succeed; ``None`` if the host gave no hint.
    retry_after: float | None = None
    #: Whether the tool may have run, or the write may have happened. ``False`` makes a retry safe.
    may_have_run: bool = True

    def __init__(self, *args: object, retry_after: float | None = None, may_have_run: bool | None = None) -> None:
        super().__init__(*args)
        if retry_after is not None:
            self.retry_after = retry_after
        if may_have_run is not None:
            self.may_have_run = may_have_run

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy without the class's own ``__init__``, whose parameters are not those of ``args``."""
        return _restore, (type(self), self.args), self.__dict__


def _restore(cls: type[SnakepitError], args: tuple[object, ...]) -> SnakepitError:
    error = cls.__new__(cls)
    SnakepitError.__init__(error, *args)
    return error


class HostToolError(SnakepitError):
    """A host tool ran and failed; the message is what it said."""

    def __init__(self, message: str, tool_name: str = "") -> None:
        super().__init__(message)
        #: The host tool's name.
        self.tool_name = tool_name


class NotFoundError(SnakepitError, LookupError):
    """The host knows no such tool, session, program, or version of a variable."""

    may_have_run = False


class VariableNotFoundError(NotFoundError, KeyError):
    """The session has no such variable."""

    # That of `KeyError` would put the message into quotes.
    __str__ = Exception.__str__


class ProgramNotFoundError(NotFoundError, KeyError):
    """There is no such program."""

    __str__ = Exception.__str__


class AlreadyExistsError(SnakepitError):
    """The session has a variable of this name already."""

    may_have_run = False


class InvalidArgumentError(SnakepitError, ValueError):
    """An argument is refused: a name, a number, a size, or the constraints of a variable."""

    may_have_run = False


class UnsupportedError(SnakepitError):
    """The tool cannot be called this way, such as a generator by ``call``; or the host does not offer the request."""

    may_have_run = False


class ValidationError(InvalidArgumentError):
    """A value is not of its variable's type, or outside its constraints."""


class VersionConflictError(SnakepitError):
    """A variable was written meanwhile: it is no longer at the version that the write expected."""

    may_have_run = False

    def __init__(self, message: str, expected: int, actual: int) -> None:
        super().__init__(message)
        #: The version that the write expected.
        self.expected = expected
        #: The version that the variable is at.
        self.actual = actual


class BatchError(SnakepitError):
    """Variables of a batch were refused; of an atomic one, none was written."""

    def __init__(self, message: str, errors: dict[str, SnakepitError], versions: dict[str, int]) -> None:
        super().__init__(message)
        #: Why, by the identifiers of the batch: what a write of each alone would raise. Hosts of the original protocol
        #: tell but texts, which become plain ``SnakepitError``.
        self.errors = errors
        #: The new versions of the variables that were written all the same.
        self.versions = versions
        self.may_have_run = bool(versions)


class LimitExceededError(SnakepitError):
    """A limit of the host stands in the way: of what a session may hold, of what all may, or of one answer."""

    may_have_run = False


class DeadlineExceededError(SnakepitError, TimeoutError):
    """The deadline passed before the host answered. ``may_have_run`` is ``False`` if the call was still queued."""


class HostUnavailableError(SnakepitError, ConnectionError):
    """The host, or the backend of its sessions, cannot be reached or used; or there is no host.

    ``may_have_run`` is ``False`` if the connection could not be made or no worker was available. It is ``True`` if the
    connection broke meanwhile: a write may have happened, so read, and write again only with ``expected_version``.
    """


class OverloadedError(HostUnavailableError):
    """The host's queue, or another of its limits on load, is full. The call did not run."""

    may_have_run = False


class WorkerLostError(HostUnavailableError):
    """The worker process ended, or was killed, before the call did. Other workers go on."""


class ShuttingDownError(HostUnavailableError):
    """The host shuts down: it refuses the call, or ended the call or watch before its end."""


class ConnectTimeoutError(HostUnavailableError, DeadlineExceededError):
    """The host did not answer within the time that connecting may take."""

    may_have_run = False


class ClientClosedError(SnakepitError, RuntimeError):
    """The client is closed. ``may_have_run`` is ``True`` for calls that ``close(timeout=..)`` ended."""

    may_have_run = False


class CallCancelledError(SnakepitError):
    """The host reports the call as cancelled, although this program did not cancel it."""


class CallCancelled(BaseException):
    """The call that this code serves was cancelled: let it pass.

    Raised in plain functions and generators, wherever they are; coroutines get ``asyncio.CancelledError`` instead. Like
    that one it is no ``Exception``, so that ``except Exception`` around a loop or a retry cannot swallow it. Nobody
    waits for the result any more: clean up in ``finally``. A tool that goes on regardless is killed with its worker.
    """


class ToolFailed(SnakepitError):  # noqa: N818
    """A tool raised. An uncaught one shows the tool's traceback, which is that of its ``__cause__``."""

    def __init__(self, type: str, message: str, traceback: str = "") -> None:  # noqa: A002
        super().__init__(": ".join(part for part in (type, message) if part))
        #: The type of what it raised, with its module unless it is a builtin.
        self.type = type
        #: The message.
        self.message = message
        #: The formatted traceback, as the host gets it.
        self.traceback = traceback
        self._show_traceback()

    def __setstate__(self, state: dict[str, Any] | None) -> None:
        """Restore the traceback of a pickled or copied one, too."""
        super().__setstate__(state)
        self._show_traceback()

    def _show_traceback(self) -> None:
        if self.traceback:
            self.__cause__ = RemoteTraceback(self.traceback)


class RemoteTraceback(Exception):  # noqa: N818
    """Stands for what a tool raised in its worker: prints the traceback of there. Never raised."""

    def __str__(self) -> str:
        """Return the traceback, on lines of its own."""
        return f'\n"""\n{self.args[0]}"""'
