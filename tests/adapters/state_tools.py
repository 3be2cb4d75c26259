"""Tools that use the state of their session, and run the scenarios of `state_checks`."""

import gc
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from raising import error_message
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

_unread_watches: list[Watch] = []


class StateTools(BaseAdapter):
    @tool
    def checks(self) -> list[str]:
        """Returns the names of the scenarios."""
        return list(CHECKS)

    @tool
    def collector(self) -> list[bool]:
        """Returns whether the garbage collector runs, and whether it ignores objects that existed at startup."""
        return [gc.isenabled(), gc.get_freeze_count() > 0]

    @tool
    def check(self, name: str) -> Any:
        """Runs a scenario."""
        return CHECKS[name](self.session_context)

    @tool
    def without_session(self) -> list[str]:
        """Returns the error messages of variables and programs without a session."""
        context = self.session_context
        context.global_programs["shared"] = 1
        return [
            error_message(InvalidArgumentError, lambda: context["n"]),
            error_message(InvalidArgumentError, lambda: context.programs["n"]),
        ]

    @tool
    def set_value(self, name: str, value: Any) -> None:
        """Writes a variable."""
        self.session_context[name] = value

    @tool
    def read_unreadable(self, name: str) -> list[str]:
        """Returns the error messages of all methods that read an unreadable value."""
        context = self.session_context
        return [
            error_message(SnakepitError, lambda: context[name]),
            error_message(SnakepitError, lambda: context.get_variables([name])),
            error_message(SnakepitError, lambda: [variable.value for variable in context.list_variables()]),
            error_message(SnakepitError, lambda: [version.value for version in context.variable_history(name)]),
        ]

    @tool
    def halve(self, name: str) -> None:
        """Halves a numpy array. Fails if the value is a list."""
        self.session_context.update(name, lambda value: value / 2)

    @tool
    def count_up(self, name: str, times: int) -> None:
        """Increments a variable while other workers write it."""
        for _ in range(times):
            self.session_context.update(name, lambda value: value + 1)

    @tool
    def register_first(self, name: str) -> None:
        """Writes a variable that other workers may be registering."""
        self.session_context[name] = self.session_context.worker_id

    @tool
    def keep_watches(self, count: int) -> int:
        """Opens watches that stay unread beyond the call. Returns the number of all such watches."""
        _unread_watches.extend(self._watch() for _ in range(count))
        self.session_context["n"] = len(_unread_watches)
        return len(_unread_watches)

    def _watch(self) -> Watch:
        """Opens a watch. Retries at the limit, because the watches of earlier calls end shortly after the calls."""
        for _ in range(1000):
            try:
                return self.session_context.watch()
            except LimitExceededError:
                time.sleep(0.01)
        raise AssertionError("the watches of earlier calls do not end")

    @tool
    def read_kept_watches(self) -> int:
        """Returns the number of updates that the unread watches of earlier calls deliver."""
        return sum(len(list(watch)) for watch in _unread_watches)

    @tool
    def fork_a_watch(self) -> int:
        """Forks a process that uses the watch of the worker. Returns its exit status."""
        watch = self.session_context.watch(initial=True)
        child = os.fork()
        if child == 0:
            try:
                error_message(HostUnavailableError, lambda: next(watch))
                error_message(HostUnavailableError, lambda: watch.__anext__().send(None))
                watch.close()
                os._exit(0)
            finally:
                os._exit(9)
        return os.waitpid(child, 0)[1]

    @tool
    def relay(self, name: str) -> Iterator[Any]:
        """Streams the updates of a variable."""
        for update in self.session_context.watch(name, initial=True):
            yield {"kind": update.kind, "value": update.variable and update.variable.value, "lost": update.lost}

    @tool
    async def relay_async(self, name: str) -> AsyncIterator[Any]:
        """Does the same as `relay` in an async generator."""
        async for update in self.session_context.watch(name, initial=True):
            yield {"kind": update.kind, "value": update.variable and update.variable.value, "lost": update.lost}
