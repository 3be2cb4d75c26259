"""The adapter of docs/python.md."""

from collections.abc import Iterator

import numpy as np

from snakepit_bridge import BaseAdapter, tool


class Tuning(BaseAdapter):
    @tool
    def prepare(self) -> None:
        context = self.session_context
        context.register_variable("rate", "float", 0.1, {"min": 0, "max": 1})
        context["losses"] = []
        context["weights"] = np.zeros((2, 3), dtype=np.float32)

    @tool
    def step(self, loss: float) -> None:
        context = self.session_context
        # Concurrent updates retry, so no loss is missing from the list.
        context.update("losses", lambda losses: [*losses, loss])
        # An atomic batch.
        with context.batch_updates() as batch:
            batch["rate"] = context["rate"] / 2
            batch["weights"] = context["weights"] - loss

    @tool
    def rates(self) -> Iterator[float]:
        """Streams the rate and its changes until the caller stops reading."""
        for update in self.session_context.watch("rate", initial=True):
            if update.variable is not None:
                yield update.variable.value
