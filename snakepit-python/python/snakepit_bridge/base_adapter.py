"""Adapters and tools: what users of this package write."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, ClassVar, Literal, TypeVar, overload

    from snakepit_bridge.session_context import SessionContext

    _F = TypeVar("_F", bound=Callable[..., Any])

#: Where :func:`tool` leaves its options on the function.
TOOL_ATTRIBUTE = "__snakepit_tool__"

#: What may become of a worker whose call was cut.
AFTER_CANCEL = ("auto", "keep", "replace")


class ToolOptions:
    """What :func:`tool` was told."""

    __slots__ = ("after_cancel", "description", "idempotent", "name", "supports_streaming")

    def __init__(
        self,
        name: str | None,
        description: str | None,
        supports_streaming: bool,
        idempotent: bool,
        after_cancel: str | None,
    ) -> None:
        self.after_cancel = after_cancel
        self.name = name
        self.description = description
        self.supports_streaming = supports_streaming
        self.idempotent = idempotent


if TYPE_CHECKING:

    @overload
    def tool(function: _F, /) -> _F: ...

    @overload
    def tool(
        *,
        name: str | None = None,
        description: str | None = None,
        supports_streaming: bool = False,
        idempotent: bool = False,
        after_cancel: Literal["auto", "keep", "replace"] | None = None,
    ) -> Callable[[_F], _F]: ...


def tool(
    function: _F | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    supports_streaming: bool = False,
    idempotent: bool = False,
    after_cancel: Literal["auto", "keep", "replace"] | None = None,
) -> _F | Callable[[_F], _F]:
    """Mark a method of an adapter as a tool that the host can call. The method itself stays as it is.

    Args:
        function: The method, when the decorator is used without parentheses.
        name: The tool's name; the method's by default.
        description: What it does, for people and language models; the docstring by default.
        supports_streaming: Whether it can be called for a stream. Generators always can.
        idempotent: Whether running it twice does no harm, so that the host may retry it.
        after_cancel: What becomes of the worker once a call of it was cut by an exception: ``"keep"`` it, ``"replace"``
            it, or ``"auto"``: keep it if the exception came while code of the adapter itself ran and the call left no
            process behind. By default what :attr:`BaseAdapter.after_cancel` says. See docs/cancellation.md.

    Raises:
        ValueError: ``after_cancel`` is none of these.
    """
    if after_cancel is not None and after_cancel not in AFTER_CANCEL:
        raise ValueError(f"after_cancel is {after_cancel!r}; it takes {', '.join(AFTER_CANCEL)}")
    options = ToolOptions(name, description, supports_streaming, idempotent, after_cancel)

    def mark(function: _F) -> _F:
        plain = function.__func__ if isinstance(function, staticmethod | classmethod) else function
        setattr(plain, TOOL_ATTRIBUTE, options)
        return function

    return mark if function is None else mark(function)


class BaseAdapter:
    """A class of tools. Deriving from it is convenient, not required.

    The worker makes a new object for each call: ``set_session_context``, then ``initialize`` if there is one, the tool,
    and in any case ``cleanup`` if there is one. Both may be coroutines. A class or static method ``process_init`` runs
    once in each worker process before the first call; keep what it loads on the class or in a module.

    An adapter may also take calls of tools that it does not declare, by a method
    ``execute_tool(self, tool_name, arguments, context)``; it names those tools in :attr:`dynamic_tools`.
    """

    # Not annotated where it runs: whoever evaluates the annotations of an adapter would miss the names.
    if TYPE_CHECKING:
        #: Names of tools that ``execute_tool`` serves. They take any arguments.
        dynamic_tools: ClassVar[Sequence[str]] = ()

        #: What becomes of a worker once a call was cut by an exception, for tools that do not say it themselves;
        #: ``None`` for what ``SNAKEPIT_AFTER_CANCEL`` says in the environment of the workers, and else ``"auto"``.
        after_cancel: ClassVar[Literal["auto", "keep", "replace"] | None] = None

        #: The call that this object serves.
        session_context: SessionContext
    else:
        dynamic_tools = ()
        after_cancel = None

    def set_session_context(self, context: SessionContext) -> None:
        """Keep the context of the call as ``self.session_context``."""
        self.session_context = context
