"""Catches exceptions of tools by their classes. The arguments are the host's address and pid."""

import asyncio
import copy
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any

from quotas import QuotaError, UnknownItemError
from snakepit_bridge import SnakepitError, ToolError, ToolFailed
from snakepit_bridge.client import Client

address = sys.argv[1]


def caught(call: Callable[[], object]) -> Any:
    """Returns the exception of a call."""
    try:
        call()
    except SnakepitError as error:
        return error
    raise AssertionError("the call did not fail")


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


with Client(address) as client:
    error = caught(lambda: client.call("spend", user="alice", units=9))
    assert isinstance(error, QuotaError)
    assert isinstance(error, ToolFailed), type(error).__mro__
    assert (error.user, error.limit, str(error)) == ("alice", 3, "alice has used all 3 units")
    assert (error.type, error.may_have_run, error.retry_after) == ("quotas.QuotaError", True, None)
    assert error.args == ("alice has used all 3 units",)
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert isinstance(copied, QuotaError)
        assert isinstance(copied, ToolFailed)
        assert (copied.user, str(copied), copied.args) == (error.user, str(error), error.args)
        assert "in spend" in shown(copied)

    error = caught(lambda: client.call("shelf", item="milk"))
    assert isinstance(error, UnknownItemError)
    assert isinstance(error, ToolError)
    assert (error.code, error.data) == ("not_found", {"known": ["tea"]})
    assert error.__notes__ == ["first note", "second note"]
    cause = error.__cause__
    assert isinstance(cause, KeyError)
    assert isinstance(cause, ToolFailed)
    assert cause.args == ("milk",)
    assert cause.__notes__ == ["the shelves are in shelves.toml"]
    assert "in lookup" in cause.traceback
    assert "in shelf" in error.traceback
    text = shown(error)
    assert (
        text.index("in lookup")
        < text.index("raise failure from error")
        < text.rindex("quotas.UnknownItemError: no milk")
    )
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert isinstance(again.__cause__, KeyError)
    assert again.__notes__ == error.__notes__

    error = caught(lambda: client.call("clean_up"))
    assert isinstance(error, QuotaError)
    assert isinstance(error.__context__, KeyError)
    assert error.__cause__ is None
    assert "in clean_up" in shown(error)

    error = caught(lambda: client.call("hidden"))
    assert isinstance(error, ValueError)
    assert error.__context__ is None

    found: list[BaseException] = []
    try:
        client.call("several")
    except* QuotaError as group:
        found.extend(group.exceptions)
    except* KeyError as group:
        found.extend(group.exceptions)
    except* TypeError as group:
        found.extend(group.exceptions)
    assert [type(each).__name__ for each in found] == ["QuotaError", "KeyError", "ExceptionGroup"], found
    assert isinstance(found[2], ExceptionGroup)
    assert isinstance(found[2].exceptions[0], TypeError)
    assert str(found[0]) == "alice has used all 3 units"

    stream = client.stream("counted", limit=2)
    assert [next(stream), next(stream)] == [0, 1]
    error = caught(lambda: next(stream))
    assert isinstance(error, UnknownItemError)
    assert error.code == "resource_exhausted"

    # The classes survive calls between tools, whether the calling tool catches the exception or not.
    assert client.call("caught") == "bob 3"
    error = caught(lambda: client.call("pass_on", tool_name="clean_up"))
    assert isinstance(error, QuotaError)
    assert (error.user, error.limit) == ("alice", 0)
    assert isinstance(error.__context__, KeyError)
    assert "in clean_up" in shown(error)

    async def asynchronous() -> None:
        try:
            await client.call_async("spend", user="alice", units=9)
        except QuotaError:
            return
        raise AssertionError

    asyncio.run(asynchronous())

    # The client does not import modules. It finds classes again after their module was imported.
    module = sys.modules.pop("quotas")
    error = caught(lambda: client.call("spend", user="alice", units=9))
    assert type(error) is ToolFailed
    assert error.type == "quotas.QuotaError"
    assert "quotas" not in sys.modules
    assert error.attributes == {"user": "alice", "limit": 3}
    sys.modules["quotas"] = module

with Client(address, exceptions=[UnknownItemError]) as client:
    assert type(caught(lambda: client.call("spend", user="alice", units=9))) is ToolFailed
    error = caught(lambda: client.call("shelf", item="milk"))
    assert isinstance(error, UnknownItemError)
    assert type(error.__cause__) is ToolFailed
with Client(address, exceptions=[]) as client:
    assert type(caught(lambda: client.call("hidden"))) is ToolFailed

print("ok")
