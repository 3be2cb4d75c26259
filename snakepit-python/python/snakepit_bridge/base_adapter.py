"""Adapters and tools: the classes and decorators for users of this package."""

from __future__ import annotations

from snakepit_bridge._current import ProcessAttribute
from snakepit_bridge._tool_metadata import METADATA_ATTRIBUTE
from snakepit_bridge._tool_metadata import ToolMetadata as ToolMetadata

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, ClassVar, Literal, TypeVar, overload

    from snakepit_bridge._current import Process
    from snakepit_bridge._registrations import ToolRegistration
    from snakepit_bridge.session_context import SessionContext

    _F = TypeVar("_F", bound=Callable[..., Any])

#: The attribute of a function in which :func:`tool` stores its options.
TOOL_ATTRIBUTE = "__snakepit_tool__"

#: The attribute of an adapter that maps attributes of the class to the names and functions of a module.
FUNCTIONS_ATTRIBUTE = "__snakepit_functions__"

#: The class of bound methods.
_METHOD = type(ProcessAttribute().__get__)

#: The accepted values of ``after_cancel``.
AFTER_CANCEL = ("auto", "keep", "replace")


def own_attribute(value: object, name: str, default: Any = None) -> Any:
    """Return an attribute of a value without calling its `__getattr__`.

    The `__getattr__` of a mock returns a value for every name. That of a lazy object, such as a pydantic validator or a
    proxy of a web framework, may raise an exception.
    """
    try:
        return object.__getattribute__(value, name)
    except Exception:
        return default


def attributes_of(member: object) -> Mapping[str, Any]:
    """Return the dictionary of a class or module member, or of the function that the member binds."""
    function = member
    if isinstance(member, staticmethod | classmethod) or type(member) is _METHOD:
        function = member.__func__  # type: ignore[union-attr]
    attributes: Mapping[str, Any] = own_attribute(function, "__dict__", {})
    return attributes


class ToolOptions:
    """The options of :func:`tool`."""

    __slots__ = (
        "after_cancel",
        "concurrency",
        "description",
        "idempotent",
        "name",
        "required_variables",
        "supports_streaming",
    )

    def __init__(
        self,
        name: str | None,
        description: str | None,
        supports_streaming: bool,
        idempotent: bool,
        after_cancel: str | None,
        concurrency: int | None,
        required_variables: Sequence[str] = (),
    ) -> None:
        self.after_cancel = after_cancel
        self.concurrency = concurrency
        self.name = name
        self.description = description
        self.supports_streaming = supports_streaming
        self.idempotent = idempotent
        self.required_variables = tuple(required_variables)


if TYPE_CHECKING:

    @overload
    def tool(function: _F, /) -> _F: ...

    @overload
    def tool(
        description: str,
        /,
        supports_streaming: bool = False,
        required_variables: Sequence[str] | None = None,
        *,
        name: str | None = None,
        idempotent: bool = False,
        after_cancel: Literal["auto", "keep", "replace"] | None = None,
        concurrency: int | None = None,
    ) -> Callable[[_F], _F]: ...

    @overload
    def tool(
        *,
        name: str | None = None,
        description: str | None = None,
        supports_streaming: bool = False,
        required_variables: Sequence[str] | None = None,
        idempotent: bool = False,
        after_cancel: Literal["auto", "keep", "replace"] | None = None,
        concurrency: int | None = None,
    ) -> Callable[[_F], _F]: ...


def tool(
    function: _F | str | None = None,
    /,
    supports_streaming: bool = False,
    required_variables: Sequence[str] | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    idempotent: bool = False,
    after_cancel: Literal["auto", "keep", "replace"] | None = None,
    concurrency: int | None = None,
) -> _F | Callable[[_F], _F]:
    """Mark a method of an adapter, or a function of a module, as a tool that the host can call. Return it unchanged.

    >>> class Shop(BaseAdapter):  # doctest: +SKIP
    ...     @tool(idempotent=True)
    ...     def price(self, item: str, count: int = 1) -> float:
    ...         return 9.99 * count

    Args:
        function: The method, if the decorator is used without parentheses. A string is the description.
        name: The name of the tool. By default the name of the method.
        description: The description for people and language models. By default the docstring.
        supports_streaming: Whether the tool can be called as a stream. Generators always can.
        required_variables: Names of the session variables that the tool reads. Clients find them in the metadata
            of the tool.
        idempotent: Whether running the tool twice is harmless. If so, the host may retry it.
        after_cancel: The policy for the worker after cancellation interrupted a call with an exception: ``"keep"`` it,
            ``"replace"`` it, or ``"auto"``. With ``"auto"``, the worker is kept if the exception was raised in code of
            the adapter and the call left no process behind. By default :attr:`BaseAdapter.after_cancel`. See
            docs/cancellation.md.
        concurrency: The maximum number of calls to this tool that each worker runs together, 1 to 256. By default, the
            tool shares :attr:`BaseAdapter.concurrency` with all tools that set no number. See docs/async.md.

    Raises:
        ValueError: ``after_cancel`` or ``concurrency`` has another value.
    """
    if concurrency is not None:
        from snakepit_bridge._concurrency import check

        check("concurrency", concurrency)
    if after_cancel is not None and after_cancel not in AFTER_CANCEL:
        raise ValueError(f"after_cancel is {after_cancel!r}; it takes {', '.join(AFTER_CANCEL)}")
    if isinstance(function, str):
        function, description = None, function
    variables = required_variables or ()
    options = ToolOptions(name, description, supports_streaming, idempotent, after_cancel, concurrency, variables)

    def mark(function: _F) -> _F:
        plain = function.__func__ if isinstance(function, staticmethod | classmethod) else function
        setattr(plain, TOOL_ATTRIBUTE, options)
        text = description or getattr(plain, "__doc__", None) or ""
        setattr(plain, METADATA_ATTRIBUTE, ToolMetadata(text, supports_streaming, required_variables=list(variables)))
        return function

    return mark if function is None else mark(function)


class _SessionId:
    """The default of :attr:`BaseAdapter.session_id`. An object may set its own value instead."""

    def __get__(self, instance: object, owner: type | None = None) -> str | None:
        context = getattr(instance, "session_context", None) or getattr(instance, "_session_context", None)
        return None if context is None else context.session_id


class _SessionContext:
    """The default of ``_session_context``, which adapters of the original Snakepit read."""

    def __get__(self, instance: object, owner: type | None = None) -> SessionContext | None:
        return None if instance is None else vars(instance).get("session_context")


class BaseAdapter:
    """Base class of adapters, the classes whose methods are tools. Deriving from it is optional.

    The worker creates a new object for each call. It calls ``set_session_context``, then ``initialize`` if the class
    has it, then the tool, and finally ``cleanup`` if the class has it, even after an error. ``initialize`` and
    ``cleanup`` may be coroutines.

    Objects that live as long as the worker are attributes of :attr:`process`. Three class or static methods, all
    optional, prepare and release them:

    - ``lifespan`` returns a context manager, synchronous or asynchronous, which is entered before the worker is ready,
      and exited when the worker stops. Each entry of the mapping that the context manager yields becomes an attribute
      of :attr:`process`.
    - ``process_init`` runs once, before the worker is ready.
    - ``process_exit`` runs once, when the worker stops. It does not run if the worker crashes or is killed.

    Each of the three may be a coroutine or return one, and runs on the event loop of the tools. Parameters of
    ``lifespan``, ``process_init`` and ``__init__`` are arguments of the adapter, which the host passes.

    An adapter can also serve undeclared tools, with a method ``execute_tool(self, tool_name, arguments, context)``. It
    lists their names in :attr:`dynamic_tools`. If :attr:`dynamic_tools` is empty, all calls go through
    ``execute_tool``, as in the original Snakepit: those of methods with :func:`tool`, and those of names that the
    adapter does not declare.

    >>> class Shop(BaseAdapter):  # doctest: +SKIP
    ...     @tool
    ...     def greet(self, name: str) -> str:
    ...         return f"Hello {name} from {self.session_context.worker_id}"
    """

    # Without annotations at run time, so that code which evaluates an adapter's annotations does not need these names.
    if TYPE_CHECKING:
        #: Names of tools that ``execute_tool`` serves. They accept any arguments. If empty, it serves all tools.
        dynamic_tools: ClassVar[Sequence[str]] = ()

        #: The policy for a worker after cancellation interrupted a call, for tools that do not set one. ``None``
        #: selects the environment variable ``SNAKEPIT_AFTER_CANCEL`` of the workers, and ``"auto"`` if it is not set.
        after_cancel: ClassVar[Literal["auto", "keep", "replace"] | None] = None

        #: The number of calls that each worker runs together, 1 to 256. Calls to coroutines and async generators
        #: overlap where they wait. The setting ``concurrency`` of the pool replaces it. ``None`` selects 1.
        concurrency: ClassVar[int | None] = None

        #: The number of threads in which each worker runs tools that are synchronous functions, 0 to 256. With 0, they
        #: run on the main thread, one at a time. The setting ``threads`` of the host replaces it. ``None`` selects 0.
        threads: ClassVar[int | None] = None

        #: The context of the call that this object serves.
        session_context: SessionContext

        #: A namespace that lives as long as the worker. All calls of the worker share it.
        process: Process

        #: The id of the call's session, empty for a call without a session. ``None`` outside of calls.
        session_id: str | None
        _session_context: SessionContext | None
    else:
        dynamic_tools = ()
        after_cancel = None
        concurrency = None
        threads = None
        process = ProcessAttribute()
        session_id = _SessionId()
        _session_context = _SessionContext()

    def set_session_context(self, context: SessionContext) -> None:
        """Store the context of the call as ``self.session_context``."""
        self.session_context = context

    def get_tools(self) -> list[ToolRegistration]:
        """Describe the tools of the adapter."""
        from snakepit_bridge._registrations import registrations_of

        return registrations_of(type(self))

    def call_tool(self, tool_name: str | None = None, /, **arguments: Any) -> Any:
        """Call a method of this object by its name, for ``execute_tool``. Return its result.

        Raises:
            AttributeError: The object has no such method.
            TypeError: The attribute of this name cannot be called, or the name is missing.
        """
        if tool_name is None:
            tool_name = arguments.pop("tool_name", None)
        if tool_name is None:
            raise TypeError("call_tool() needs the name of a tool")
        kind = type(self).__name__
        method = getattr(self, tool_name, None)
        if method is None:
            raise AttributeError(f"tool `{tool_name}` not found: `{kind}` has no method of this name")
        if not callable(method):
            raise TypeError(f"`{tool_name}` of `{kind}` cannot be called, so it is not a tool")
        return method(**arguments)

    def register_with_session(self, session_id: str, stub: object) -> list[str]:
        """Return the names of the tools. The worker registers them once, so this method sends nothing."""
        del session_id, stub
        return [registration.name for registration in self.get_tools()]

    async def register_with_session_async(self, session_id: str, stub: object) -> list[str]:
        """Return the names of the tools, as :meth:`register_with_session` does."""
        return self.register_with_session(session_id, stub)
