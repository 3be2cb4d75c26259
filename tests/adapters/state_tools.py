"""Tools that live on the state of their session, and run the scenarios of `state_checks`."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from snakepit_bridge import BaseAdapter, InvalidArgumentError, tool
from state_checks import CHECKS, said


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
    def count_up(self, name: str, times: int) -> None:
        """Adds one to a variable that others write too."""
        for _ in range(times):
            self.session_context.update(name, lambda value: value + 1)

    @tool
    def register_first(self, name: str) -> None:
        """Writes a variable that nobody registered, or that somebody just did."""
        self.session_context[name] = self.session_context.worker_id

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
