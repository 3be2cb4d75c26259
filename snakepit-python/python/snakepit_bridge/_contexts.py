"""The context variables that calls begin with."""

from __future__ import annotations

import sys
from contextvars import Context, copy_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: What `decimal` calls the variable that holds its context.
_DECIMAL = "decimal_context"


def of_calls() -> tuple[Context, Callable[[], None] | None]:
    """Get the context that each call begins with a copy of, and what is to run in each copy before, if anything.

    A copy has the same objects in its variables. The precision and rounding of `decimal` are attributes of such an
    object, which calls would share.
    """
    context = copy_context()
    variable: Any = next((variable for variable in context if variable.name == _DECIMAL), None)
    decimal = sys.modules.get("decimal")
    if variable is None or decimal is None:
        return context, None
    found = context[variable]
    if _settings(found) == _settings(decimal.DefaultContext):
        # Then each call that needs one makes it.
        without = Context()
        for other, value in context.items():
            if other is not variable:
                without.run(other.set, value)
        return without, None
    found = found.copy()
    return context, lambda: variable.set(found.copy())


def _settings(context: Any) -> tuple[object, ...]:
    numbers = (context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp)
    return (*numbers, dict(context.traps))
