"""The context of the running call, and the namespace of the worker."""

from __future__ import annotations

import sys

# Not from `contextvars`, whose file only renames this module.
from _contextvars import ContextVar
from _thread import get_ident

from snakepit_bridge import _owner
from snakepit_bridge._owner import OWNER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from snakepit_bridge.session_context import SessionContext


class Process:
    """A namespace for objects that live as long as the worker, such as a loaded model or a connection.

    ``process_init`` sets its attributes, and the mapping that ``lifespan`` yields adds more. All calls of the worker
    share it, and no other worker does.
    """

    if TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        """Raise an error that names the functions that set attributes."""
        raise AttributeError(
            f"the process namespace has no attribute `{name}`; set it in `process_init`, or let `lifespan` yield it",
            name=name,
            obj=self,
        )

    def __repr__(self) -> str:
        """Return a representation with the names of the attributes."""
        return f"Process({', '.join(name for name in vars(self) if name != _CACHE)})"


class ProcessAttribute:
    """An attribute of adapter classes and their objects that returns the namespace of the worker."""

    def __get__(self, instance: object, owner: type | None = None) -> Process:
        """Return the namespace."""
        return process()


#: The attribute of a namespace for :func:`process_cache`.
_CACHE = "__snakepit_cache__"

_PROCESS: ContextVar[Process] = ContextVar("snakepit_process")
_default = Process()

#: The contexts of the calls that run one at a time, by thread. The native runtime sets and clears the entries.
RUNNING: dict[int, SessionContext | None] = {}


def process() -> Process:
    """Return the namespace of the worker, or of the tester whose call is running."""
    return _PROCESS.get(_default)


def process_cache() -> dict[Any, Any]:
    """Return a dict that lives as long as the namespace of the worker."""
    cache: dict[Any, Any] = vars(process()).setdefault(_CACHE, {})
    return cache


def set_process(namespace: Process) -> None:
    """Replace the namespace in the current context."""
    _PROCESS.set(namespace)


def current_context() -> SessionContext:
    """Return the context of the running call.

    It works in a tool and in everything that the tool runs: coroutines, tasks, threads, and work that it submits to a
    :class:`~concurrent.futures.ThreadPoolExecutor`, including calls to ``asyncio.to_thread``. Processes that the tool
    starts have no context.

    >>> current_context().session_id  # doctest: +SKIP
    'user-7'

    Raises:
        RuntimeError: No tool runs here.
    """
    context = find()
    if context is None:
        raise RuntimeError(
            "no tool runs here; call `current_context` in a tool, or in a thread or task that a tool started"
        )
    return context


def find() -> SessionContext | None:
    """Return the context of the running call. ``None`` if no tool runs here."""
    owner = OWNER.get()
    # Calls that run concurrently have their context with their owner.
    context: SessionContext | None = getattr(owner, "context", None)
    if context is not None:
        return context
    ident = get_ident()
    context = RUNNING.get(ident)
    if context is not None:
        return context if owner is _owner.running or (owner is None and not runs_loop()) else None
    from snakepit_bridge import _threads

    return _threads.context_of(ident)


def runs_loop() -> bool:
    """Return whether this thread runs an event loop. A callback without an owner then comes from another thread."""
    # The function is missing while another thread imports the module.
    running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    return running is not None and running() is not None
