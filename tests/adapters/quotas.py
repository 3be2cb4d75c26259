"""Tools that raise application exceptions with causes, notes and groups."""

from collections.abc import Iterator

from snakepit_bridge import BaseAdapter, ToolError, tool


class QuotaError(Exception):
    """A user has used up a quota."""

    __snakepit_attributes__ = ("user", "limit")

    def __init__(self, user: str, limit: int) -> None:
        super().__init__(f"{user} has used all {limit} units")
        self.user = user
        self.limit = limit


class UnknownItemError(ToolError):
    """An item does not exist."""


def lookup(shelves: dict[str, int], item: str) -> int:
    """Returns the shelf of an item."""
    return shelves[item]


class Quotas(BaseAdapter):
    @tool
    def spend(self, user: str, units: int) -> int:
        """Raises an exception with attributes if a user has fewer than this number of units."""
        if units > 3:
            raise QuotaError(user, 3)
        return 3 - units

    @tool
    def shelf(self, item: str) -> int:
        """Raises an exception with a code, a cause and notes for an unknown item."""
        try:
            return lookup({"tea": 7}, item)
        except KeyError as error:
            error.add_note("the shelves are in shelves.toml")
            failure = UnknownItemError(f"no {item}", code="not_found", data={"known": ["tea"]})
            failure.add_note("first note")
            failure.add_note("second note")
            raise failure from error

    @tool
    def clean_up(self) -> None:
        """Raises an exception while it handles another one."""
        try:
            lookup({}, "tea")
        except KeyError:
            raise QuotaError("alice", 0)  # noqa: B904

    @tool
    def hidden(self) -> None:
        """Raises an exception whose context is hidden."""
        try:
            lookup({}, "tea")
        except KeyError:
            raise ValueError("no tea") from None

    @tool
    def several(self) -> None:
        """Raises a group of exceptions."""
        errors: list[Exception] = [QuotaError("alice", 3)]
        try:
            lookup({}, "tea")
        except KeyError as error:
            errors.append(error)
        raise ExceptionGroup("two tasks failed", [*errors, ExceptionGroup("inner", [TypeError("odd")])])

    @tool
    def counted(self, limit: int) -> Iterator[int]:
        """Streams numbers, then raises an exception with a code."""
        yield from range(limit)
        raise UnknownItemError("no more", code="resource_exhausted")

    @tool
    def pass_on(self, tool_name: str) -> object:
        """Calls another tool and does not catch its exception."""
        return self.session_context.call_tool(tool_name)

    @tool
    def caught(self) -> str:
        """Calls another tool and catches its exception by its class."""
        try:
            self.session_context.call_tool("spend", user="bob", units=9)
        except QuotaError as error:
            return f"{error.user} {error.limit}"
        return "no exception"
