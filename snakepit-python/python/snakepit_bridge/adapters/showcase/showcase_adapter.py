"""The showcase adapter: one tool of each kind, and a small machine-learning workflow."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from snakepit_bridge import BaseAdapter, tool
from snakepit_bridge.adapters.showcase import digits

#: The interval at which the sleeping tool checks for cancellation, in seconds.
_CHECK_INTERVAL = 0.05


def _plain(number: float) -> float:
    """Return a whole number as an int: 3 instead of 3.0."""
    return int(number) if float(number).is_integer() and abs(number) < 2**53 else number


class ShowcaseAdapter(BaseAdapter):
    """Tools that demonstrate and test the features of a worker."""

    @tool(idempotent=True)
    def add(self, a: float, b: float) -> int | float:
        """Add two numbers.

        Args:
            a: The first number.
            b: The second number.
        """
        return _plain(a + b)

    @tool(idempotent=True)
    async def async_add(self, a: float, b: float) -> int | float:
        """Add two numbers in a coroutine."""
        await asyncio.sleep(0)
        return _plain(a + b)

    @tool(idempotent=True)
    def echo(self, **kwargs: Any) -> dict[str, Any]:
        """Return all arguments unchanged."""
        return kwargs

    @tool
    def sleep_for(self, seconds: float) -> float:
        """Sleep until the time has passed or the call is cancelled. Returns the slept seconds.

        Args:
            seconds: The time to sleep.
        """
        began = time.monotonic()
        while (left := began + seconds - time.monotonic()) > 0 and not self.session_context.cancelled:
            time.sleep(min(left, _CHECK_INTERVAL))
        return time.monotonic() - began

    @tool
    async def async_sleep(self, seconds: float) -> float:
        """Sleep in a coroutine. Cancellation ends it immediately. Returns the slept seconds.

        Args:
            seconds: The time to sleep.
        """
        began = time.monotonic()
        await asyncio.sleep(seconds)
        return time.monotonic() - began

    @tool
    def count(self, n: int, delay: float = 0.0) -> Iterator[int]:
        """Count from 1 to n, with one chunk per number.

        Args:
            n: The last number.
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
            n: The last number.
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
            message: The message of the error.
        """
        raise ValueError(message)

    @tool
    def call_host(self, tool_name: str, arguments: dict[str, Any] | None = None) -> Any:
        """Call a host tool and return its result.

        Args:
            tool_name: The name of the host tool.
            arguments: Its arguments by name.
        """
        return self.session_context.call_host_tool(tool_name, **(arguments or {}))

    @tool
    def whoami(self) -> dict[str, Any]:
        """Return the process id, the worker id and the session id of the call."""
        context = self.session_context
        return {"pid": os.getpid(), "worker": context.worker_id, "session_id": context.session_id}

    @tool
    def print_lines(self, n: int) -> int:
        """Print lines to stdout, which the host logs.

        Args:
            n: The number of lines.
        """
        for number in range(1, n + 1):
            print(f"line {number} of {n}")  # noqa: T201
        return n

    @tool(idempotent=True)
    def digits_info(self) -> dict[str, Any]:
        """Return the number of training and held-out images of scikit-learn's digits."""
        return digits.info()

    @tool
    def train_digits(self, epochs: int = 20, program: str = "digits") -> Iterator[dict[str, Any]]:
        """Train a classifier on scikit-learn's digits, and store it as a program of the session. Streams the progress.

        Args:
            epochs: The number of passes over the training images.
            program: The name of the program.
        """
        training = digits.Training(epochs)
        for step in range(1, training.steps + 1):
            yield {"step": step, "steps": training.steps, **training.step()}
        model = training.model.to_bytes()
        self.session_context.programs.put(program, model, {"kind": "digits"})
        yield {"done": True, "program": program, "bytes": len(model), "classes": training.classes}

    @tool(idempotent=True)
    def predict_digits(self, start: int, count: int, program: str = "digits") -> dict[str, Any]:
        """Predict held-out images with the session's model.

        If the host has the tool `score_predictions`, call it to score them.

        Args:
            start: The first image.
            count: The number of images.
            program: The name of the program that stores the model.
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
