"""The context of the running call, and the namespace of the worker."""

from __future__ import annotations

from contextvars import ContextVar

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

_CONTEXT: ContextVar[SessionContext] = ContextVar("snakepit_context")


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
    """Return the context of the running call, in a tool that is a plain function.

    Methods of an adapter have it as ``self.session_context``. A thread that a tool starts needs a copy of the tool's
    context variables, which ``asyncio.to_thread`` makes.

    Raises:
        RuntimeError: No function runs as a tool here.
    """
    try:
        return _CONTEXT.get()
    except LookupError:
        raise RuntimeError(
            "no function runs as a tool here; in a method of an adapter, use `self.session_context`"
        ) from None


def set_context(context: SessionContext) -> None:
    """Set the context of the running call."""
    _CONTEXT.set(context)
