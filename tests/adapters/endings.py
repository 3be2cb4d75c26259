"""One tool of each kind. The argument `how` selects how the call ends."""

import asyncio
import collections
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from snakepit_bridge import BaseAdapter, tool


class Shelf:
    """Nests an exception class, so that its qualified name, `Shelf.EmptyError`, has two parts."""

    class EmptyError(Exception):
        """Raised by the tool `empty`."""


def begin(marker: str) -> None:
    """Creates the marker file. The test waits for it to know that the call has begun."""
    Path(marker).write_text("begun")


def end(how: str) -> str:
    """Ends a tool: raises an exception, or returns the argument."""
    if how == "exception":
        raise ValueError("on purpose")
    return how


class EndingsAdapter(BaseAdapter):
    @tool
    def function(self, how: str, marker: str) -> str:
        """A plain function."""
        begin(marker)
        if how == "hang":
            time.sleep(600)
        return end(how)

    @tool
    async def coroutine(self, how: str, marker: str) -> str:
        """A coroutine."""
        begin(marker)
        if how == "hang":
            await asyncio.sleep(600)
        return end(how)

    @tool
    def generator(self, how: str, marker: str) -> Iterator[str]:
        """A generator."""
        yield "first"
        begin(marker)
        if how == "hang":
            time.sleep(600)
        yield end(how)

    @tool
    async def async_generator(self, how: str, marker: str) -> AsyncIterator[str]:
        """An async generator."""
        yield "first"
        begin(marker)
        if how == "hang":
            await asyncio.sleep(600)
        yield end(how)

    @tool
    def native(self, how: str, marker: str) -> str:
        """C code that neither returns nor releases the GIL."""
        begin(marker)
        collections.deque(itertools.repeat(None), maxlen=0)
        return end(how)

    @tool
    def relay_py(self, depth: int) -> int:
        """Calls itself through a host tool until the depth is 0."""
        return depth if depth == 0 else 1 + int(self.session_context.call_host_tool("relay", depth=depth - 1))

    @tool
    def writes(self) -> None:
        """Writes a session variable until the call ends."""
        for number in itertools.count():
            self.session_context["n"] = number

    @tool
    async def writes_in_threads(self) -> None:
        """As `writes`, in threads of the event loop."""
        for number in itertools.count():
            await asyncio.to_thread(self.session_context.__setitem__, "n", number)

    @tool
    def writes_and_hides(self) -> None:
        """As `writes`, and replaces every exception."""
        try:
            self.writes()
        except Exception as error:
            raise ValueError("on purpose") from error

    @tool
    def traces(self) -> list[Any]:
        """Returns the trace context in this tool and in a host tool."""
        context = self.session_context
        return [context.traceparent, context.tracestate, context.call_host_tool("trace")]

    @tool
    def empty(self) -> None:
        """Raises an exception of a nested class."""
        raise Shelf.EmptyError("nothing left")
