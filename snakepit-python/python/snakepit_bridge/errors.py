"""What can go wrong when a tool talks to its host."""


class SnakepitError(Exception):
    """Any failure of a call to the host."""


class HostToolError(SnakepitError):
    """A host tool ran and failed; the message is what it said."""

    def __init__(self, message: str, tool_name: str = "") -> None:
        super().__init__(message)
        #: The host tool's name.
        self.tool_name = tool_name


class NotFoundError(SnakepitError, LookupError):
    """The host knows no such tool, session, program, or version of a variable."""


class VariableNotFoundError(NotFoundError, KeyError):
    """The session has no such variable."""

    # That of `KeyError` would put the message into quotes.
    __str__ = Exception.__str__


class ProgramNotFoundError(NotFoundError, KeyError):
    """There is no such program."""

    __str__ = Exception.__str__


class AlreadyExistsError(SnakepitError):
    """The session has a variable of this name already."""


class InvalidArgumentError(SnakepitError, ValueError):
    """An argument is refused: a name, a number, a size, or the constraints of a variable."""


class ValidationError(InvalidArgumentError):
    """A value is not of its variable's type, or outside its constraints."""


class VersionConflictError(SnakepitError):
    """A variable was written meanwhile: it is no longer at the version that the write expected."""

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


class LimitExceededError(SnakepitError):
    """A limit of the host stands in the way: of what a session may hold, of what all may, or of one answer."""


class DeadlineExceededError(SnakepitError, TimeoutError):
    """The call's deadline passed before the host answered."""


class HostUnavailableError(SnakepitError, ConnectionError):
    """The host, or what it keeps its sessions in, cannot be reached or is overloaded; or there is no host.

    After a write nobody knows whether it happened: the answer may be what was lost. Read, and write again only with
    ``expected_version``.
    """


class CallCancelled(BaseException):
    """The call that this code serves was cancelled: let it pass.

    Raised in plain functions and generators, wherever they are; coroutines get ``asyncio.CancelledError`` instead. Like
    that one it is no ``Exception``, so that ``except Exception`` around a loop or a retry cannot swallow it. Nobody
    waits for the result any more: clean up in ``finally``. A tool that goes on regardless is killed with its worker.
    """


class ToolFailed(SnakepitError):  # noqa: N818
    """A tool raised; for tests that call tools by :mod:`snakepit_bridge.testing`."""

    def __init__(self, type: str, message: str, traceback: str = "") -> None:  # noqa: A002
        super().__init__(f"{type}: {message}")
        #: The type of what it raised, with its module unless it is a builtin.
        self.type = type
        #: The message.
        self.message = message
        #: The formatted traceback, as the host gets it.
        self.traceback = traceback
