"""Makes the context of a call available in the threads that it starts, and in the work that it submits to pools."""

from __future__ import annotations

import sys
from _thread import get_ident

from snakepit_bridge import _current
from snakepit_bridge._imports import on_import

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from snakepit_bridge.session_context import SessionContext

#: The attribute of a thread or work item that holds the context of the call that created it.
_ATTRIBUTE = "_snakepit_context"

#: The modules of pools, whose threads serve many calls.
_POOLS = frozenset({"concurrent.futures.thread", "multiprocessing.pool"})

#: The contexts of the running work items, by thread.
_working: dict[int, SessionContext] = {}

_is_installed = False


def install() -> None:
    """Record the calls that start threads and submit work, from now on."""
    global _is_installed
    if _is_installed:
        return
    _is_installed = True
    on_import("threading", _watch_threads)
    on_import("concurrent.futures.thread", _watch_pools)


def context_of(ident: int) -> SessionContext | None:
    """Return the context of the call that this thread works for."""
    context = _working.get(ident)
    if context is None:
        threading: Any = sys.modules.get("threading")
        thread = None if threading is None else threading._active.get(ident)
        context = None if thread is None else vars(thread).get(_ATTRIBUTE)
    return context


def _watch_threads(module: ModuleType) -> None:
    thread: Any = module.Thread
    start = thread.start

    def start_with_context(self: Any) -> None:
        if getattr(getattr(self, "_target", None), "__module__", None) not in _POOLS:
            context = _current.find()
            if context is not None:
                setattr(self, _ATTRIBUTE, context)
        start(self)

    start_with_context.__doc__ = start.__doc__
    start_with_context.__name__, start_with_context.__qualname__ = start.__name__, start.__qualname__
    thread.start = start_with_context


def _watch_pools(module: ModuleType) -> None:
    item: Any = getattr(module, "_WorkItem", None)
    if item is None:
        return
    initialize, run = item.__init__, item.run

    def initialize_with_context(self: Any, *args: Any, **options: Any) -> None:
        initialize(self, *args, **options)
        context = _current.find()
        if context is not None:
            setattr(self, _ATTRIBUTE, context)

    # The frames of `run` are not part of the tracebacks that it stores.
    def run_with_context(self: Any, *args: Any) -> None:
        context = vars(self).get(_ATTRIBUTE)
        if context is None:
            run(self, *args)
            return
        ident = get_ident()
        _working[ident] = context
        try:
            run(self, *args)
        finally:
            del _working[ident]

    item.__init__, item.run = initialize_with_context, run_with_context
