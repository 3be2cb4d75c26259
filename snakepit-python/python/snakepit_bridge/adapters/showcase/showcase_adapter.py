"""The showcase: one tool of each kind, and a small machine-learning workflow."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from snakepit_bridge import BaseAdapter, tool
from snakepit_bridge.adapters.showcase import digits

#: How long the sleeping tool goes without looking whether it should stop, in seconds.
_NAP = 0.05


def _plain(number: float) -> float:
    """Tell a whole number as an int, as people write it: 3, not 3.0."""
    return int(number) if float(number).is_integer() and abs(number) < 2**53 else number


class ShowcaseAdapter(BaseAdapter):
    """Tools that show, and test, what a worker can do."""

    @tool(idempotent=True)
    def add(self, a: float, b: float) -> float:
        """Add two numbers.

        Args:
            a: The first number.
            b: The second number.
        """
        return _plain(a + b)

    @tool(idempotent=True)
    async def async_add(self, a: float, b: float) -> float:
        """Add two numbers in a coroutine."""
        await asyncio.sleep(0)
        return _plain(a + b)

    @tool(idempotent=True)
    def echo(self, **kwargs: Any) -> dict[str, Any]:
        """Return all arguments as they came."""
        return kwargs

    @tool
    def sleep_for(self, seconds: float) -> float:
        """Sleep, and look now and then whether the call was cancelled. Returns the seconds it slept.

        Args:
            seconds: How long.
        """
        began = time.monotonic()
        while (left := began + seconds - time.monotonic()) > 0 and not self.session_context.cancelled:
            time.sleep(min(left, _NAP))
        return time.monotonic() - began

    @tool
    async def async_sleep(self, seconds: float) -> float:
        """Sleep in a coroutine, which ends at once when the call is cancelled. Returns the seconds it slept.

        Args:
            seconds: How long.
        """
        began = time.monotonic()
        await asyncio.sleep(seconds)
        return time.monotonic() - began

    @tool
    def count(self, n: int, delay: float = 0.0) -> Iterator[int]:
        """Count from 1 to n, a chunk a number.

        Args:
            n: Where to stop.
            delay: Seconds before each number.
        """
        for number in range(1, n + 1):
            if delay > 0:
                time.sleep(delay)
            yield number

    @tool
    async def async_count(self, n: int, delay: float = 0.0) -> AsyncIterator[int]:
        """Count from 1 to n in an async generator.

        Args:
            n: Where to stop.
            delay: Seconds before each number.
        """
        for number in range(1, n + 1):
            if delay > 0:
                await asyncio.sleep(delay)
            yield number

    @tool
    def fail(self, message: str = "it was asked to fail") -> None:
        """Raise a ValueError.

        Args:
            message: What the error says.
        """
        raise ValueError(message)

    @tool
    def call_host(self, tool_name: str, arguments: dict[str, Any] | None = None) -> Any:
        """Call a tool of the host and return its result.

        Args:
            tool_name: The host tool.
            arguments: Its arguments, by name.
        """
        return self.session_context.call_host_tool(tool_name, **(arguments or {}))

    @tool
    def whoami(self) -> dict[str, Any]:
        """Say which process serves the call, and for which session."""
        context = self.session_context
        return {"pid": os.getpid(), "worker": context.worker_id, "session_id": context.session_id}

    @tool
    def print_lines(self, n: int) -> int:
        """Print lines to stdout, where the host logs them.

        Args:
            n: How many.
        """
        for number in range(1, n + 1):
            print(f"line {number} of {n}")  # noqa: T201
        return n

    @tool(idempotent=True)
    def digits_info(self) -> dict[str, Any]:
        """Say how many images of scikit-learn's digits there are to train on, and how many are held out."""
        return digits.info()

    @tool
    def train_digits(self, epochs: int = 20, program: str = "digits") -> Iterator[dict[str, Any]]:
        """Train a classifier on scikit-learn's digits, tell its progress, and keep it as a program of the session.

        Args:
            epochs: How often to go through the training images.
            program: The name to keep the trained model under.
        """
        training = digits.Training(epochs)
        for step in range(1, training.steps + 1):
            yield {"step": step, "steps": training.steps, **training.step()}
        model = training.model.to_bytes()
        self.session_context.programs.put(program, model, {"kind": "digits"})
        yield {"done": True, "program": program, "bytes": len(model), "classes": training.classes}

    @tool(idempotent=True)
    def predict_digits(self, start: int, count: int, program: str = "digits") -> dict[str, Any]:
        """Predict held-out images with the session's model, and have the host score them if it has the tool for that.

        Args:
            start: The first image.
            count: How many images.
            program: The name that the model was kept under.
        """
        context = self.session_context
        model = digits.Model.from_bytes(context.programs[program])
        predicted, expected = digits.predict(model, start, count)
        answer = {
            "predicted": predicted,
            "expected": expected,
            "worker": context.worker_id,
            "pid": os.getpid(),
        }
        if "score_predictions" in context.host_tools:
            answer["score"] = context.call_host_tool("score_predictions", predicted=predicted, expected=expected)
        return answer
