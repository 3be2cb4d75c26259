"""The context variables at the start of each call."""

from __future__ import annotations

import sys

# `_current` explains why this is not imported from `contextvars`.
from _contextvars import Context, copy_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: The name of the variable in which `decimal` stores its context.
_DECIMAL = "decimal_context"


def base_context() -> tuple[Context, Callable[[], None] | None]:
    """Return the base context, of which each call gets a copy, and a function to run first in each copy, or `None`.

    Copies share the objects in their variables. `decimal` stores its precision and rounding in such an object, so each
    call needs a copy of it.
    """
    context = copy_context()
    variable: Any = next((variable for variable in context if variable.name == _DECIMAL), None)
    decimal = sys.modules.get("decimal")
    if variable is None or decimal is None:
        return context, None
    decimal_context = context[variable]
    if _settings(decimal_context) == _settings(decimal.DefaultContext):
        # Without the variable, `decimal` creates a default context in each call that needs one.
        stripped = Context()
        for other, value in context.items():
            if other is not variable:
                stripped.run(other.set, value)
        return stripped, None
    decimal_context = decimal_context.copy()
    return context, lambda: variable.set(decimal_context.copy())


def _settings(context: Any) -> tuple[object, ...]:
    numbers = (context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp)
    return (*numbers, dict(context.traps))
