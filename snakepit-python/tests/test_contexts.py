"""The context variables at the start of each call. Changes to `decimal` do not affect the next call."""

from __future__ import annotations

import decimal
from collections.abc import Iterator
from contextvars import Context, ContextVar
from decimal import Decimal

import pytest

from snakepit_bridge import _contexts


def calls(start: Context) -> Iterator[Context]:
    """Yields the call contexts of a worker that started in this context."""
    base, prepare = start.run(_contexts.base_context)
    while True:
        context = base.copy()
        if prepare is not None:
            context.run(prepare)
        yield context


def change() -> None:
    decimal.getcontext().prec = 3
    decimal.getcontext().traps[decimal.Inexact] = True


@pytest.mark.parametrize("precision", [None, 28, 50])
def test_a_call_does_not_change_the_precision_of_the_next(precision: int | None) -> None:
    def start() -> None:
        if precision is not None:
            decimal.getcontext().prec = precision

    worker = Context()
    worker.run(start)
    contexts = calls(worker)
    for _ in range(3):
        context = next(contexts)
        assert len(str(context.run(lambda: Decimal(1) / 3))) == 2 + (precision or 28)
        context.run(change)
    assert worker.run(decimal.getcontext).prec == (precision or 28)


def test_calls_inherit_the_other_context_variables_of_the_worker() -> None:
    mark: ContextVar[str] = ContextVar("mark")
    worker = Context()
    worker.run(mark.set, "the worker's")
    worker.run(decimal.getcontext)
    assert next(calls(worker)).run(mark.get) == "the worker's"
