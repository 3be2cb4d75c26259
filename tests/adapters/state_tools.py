"""Tools that live on the state of their session, and run the scenarios of `state_checks`."""

import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from refusals import said
from snakepit_bridge import (
    BaseAdapter,
    HostUnavailableError,
    InvalidArgumentError,
    LimitExceededError,
    SnakepitError,
    tool,
)
from snakepit_bridge.watch import Watch
from state_checks import CHECKS

_kept: list[Watch] = []


class StateTools(BaseAdapter):
    @tool
    def checks(self) -> list[str]:
        """Names the scenarios."""
        return list(CHECKS)

    @tool
    def check(self, name: str) -> Any:
        """Runs a scenario."""
        return CHECKS[name](self.session_context)

    @tool
    def without_session(self) -> list[str]:
        """What variables and programs say when there is no session."""
        context = self.session_context
        context.global_programs["shared"] = 1
        return [
            said(InvalidArgumentError, lambda: context["n"]),
            said(InvalidArgumentError, lambda: context.programs["n"]),
        ]

    @tool
    def set_value(self, name: str, value: Any) -> None:
        """Writes a variable."""
        self.session_context[name] = value

    @tool
    def read_unreadable(self, name: str) -> list[str]:
        """What the ways to a value say that cannot be read."""
        context = self.session_context
        return [
            said(SnakepitError, lambda: context[name]),
            said(SnakepitError, lambda: context.get_variables([name])),
            said(SnakepitError, lambda: [variable.value for variable in context.list_variables()]),
            said(SnakepitError, lambda: [version.value for version in context.variable_history(name)]),
        ]

    @tool
    def halve(self, name: str) -> None:
        """Halves a numpy array, as no list can be halved."""
        self.session_context.update(name, lambda value: value / 2)

    @tool
    def count_up(self, name: str, times: int) -> None:
        """Adds one to a variable that others write too."""
        for _ in range(times):
            self.session_context.update(name, lambda value: value + 1)

    @tool
    def register_first(self, name: str) -> None:
        """Writes a variable that nobody registered, or that somebody just did."""
        self.session_context[name] = self.session_context.worker_id

    @tool
    def keep_watches(self, count: int) -> int:
        """Makes watches that outlive the call, and nobody reads. Returns how many there are."""
        _kept.extend(self._watch() for _ in range(count))
        self.session_context["n"] = len(_kept)
        return len(_kept)

    def _watch(self) -> Watch:
        """Makes a watch. Where there is no room for it, those of earlier calls end a moment after them."""
        for _ in range(1000):
            try:
                return self.session_context.watch()
            except LimitExceededError:
                time.sleep(0.01)
        raise AssertionError("the watches of earlier calls do not end")

    @tool
    def read_kept_watches(self) -> int:
        """Returns how many updates the watches of earlier calls still have."""
        return sum(len(list(watch)) for watch in _kept)

    @tool
    def fork_a_watch(self) -> int:
        """Leaves a process behind that goes on with the watch of the worker. Returns its exit status."""
        watch = self.session_context.watch(initial=True)
        child = os.fork()
        if child == 0:
            try:
                said(HostUnavailableError, lambda: next(watch))
                said(HostUnavailableError, lambda: watch.__anext__().send(None))
                watch.close()
                os._exit(0)
            finally:
                os._exit(9)
        return os.waitpid(child, 0)[1]

    @tool
    def relay(self, name: str) -> Iterator[Any]:
        """Streams what happens to a variable."""
        for update in self.session_context.watch(name, initial=True):
            yield {"kind": update.kind, "value": update.variable and update.variable.value, "lost": update.lost}

    @tool
    async def relay_async(self, name: str) -> AsyncIterator[Any]:
        """Streams what happens to a variable, from a coroutine."""
        async for update in self.session_context.watch(name, initial=True):
            yield {"kind": update.kind, "value": update.variable and update.variable.value, "lost": update.lost}
