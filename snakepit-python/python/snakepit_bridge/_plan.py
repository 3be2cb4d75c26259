"""Creates a `Plan` from an adapter class: the information that the native runtime needs to run it."""

from __future__ import annotations

import sys

from snakepit_bridge import _contexts, _failures, _signatures, _specs
from snakepit_bridge._event_loop import EventLoop, drain
from snakepit_bridge.base_adapter import AFTER_CANCEL, TOOL_ATTRIBUTE, ToolOptions
from snakepit_bridge.chunks import StreamChunk
from snakepit_bridge.session_context import SessionContext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from snakepit_bridge._native import Call


class AdapterError(Exception):
    """An adapter cannot be used. The message contains the reason and the fix."""


class ToolPlan:
    """One declared tool."""

    def __init__(self, attribute: str, is_generator: bool, spec: _specs.ToolSpec, after_cancel: str | None) -> None:
        self.attribute = attribute
        self.is_generator = is_generator
        self.spec = spec
        self.after_cancel = after_cancel


class Plan:
    """The information that the native runtime reads. Mirrors `plan.rs`."""

    def __init__(
        self,
        adapter: type,
        loop: EventLoop,
        tools: list[ToolPlan],
        dynamic: list[_specs.ToolSpec],
        after_cancel: str,
    ) -> None:
        self.factory: Callable[[], object] = adapter
        self.tools = tools
        self.dynamic_specs = dynamic
        self.has_context = _has(adapter, "set_session_context")
        self.has_initialize = _has(adapter, "initialize")
        self.has_cleanup = _has(adapter, "cleanup")
        self.is_dynamic = _has(adapter, "execute_tool")
        self.context: Callable[[Call], SessionContext] = SessionContext
        self.run_async = loop.run
        self.drain_async = drain
        self.end_async = loop.end_call
        self.turn_async = loop.turn
        self.loop_fileno = loop.fileno
        self.contexts = _contexts.base_context
        #: Restores the signals, trace functions and standard streams of the worker after a call.
        self.restore: Callable[[], None] | None = None
        #: The policy of tools that do not set one.
        self.after_cancel = after_cancel
        #: The modules that define the adapter and its bases.
        self.modules = frozenset(base.__module__ for base in adapter.__mro__)
        self.describe = _failures.describe
        self.details = _failures.details
        self.chunk = StreamChunk


def load(path: str) -> type:
    """Import the adapter class ``module.path:Class`` or ``module.path.Class``.

    Raises:
        AdapterError: The class was not found, or importing it raised the cause of this error.
    """
    module_name, separator, class_name = path.partition(":")
    if not separator:
        module_name, _, class_name = path.rpartition(".")
    if not module_name or not class_name:
        raise AdapterError(f"adapter `{path}` does not name a class; write it as `module.path:Class`")
    try:
        __import__(module_name)
        module = sys.modules[module_name]
    except ModuleNotFoundError as error:
        fix = f"install it for {sys.executable}, or add its directory to PYTHONPATH"
        if separator and module_name.endswith(".py"):
            directory, _, file_name = module_name.rpartition("/")
            directory = directory or ("/" if module_name.startswith("/") else ".")
            name = file_name.removesuffix(".py")
            fix = f"`{module_name}` is a file; use `{name}:{class_name}`"
            # Not imported at the start, because workers load only what each of them needs.
            from importlib.machinery import PathFinder

            # A file in a directory that Python searches needs only the name of its module.
            if PathFinder.find_spec(name) is None:
                fix += f" with PYTHONPATH={directory}"
        raise AdapterError(f"adapter `{path}` cannot be imported: {error}; {fix}") from error
    except BaseException as error:
        described = _one_line(f"{_failures.type_name(type(error))}: {error}")
        raise AdapterError(f"adapter `{path}` cannot be imported: {described}") from error
    adapter: Any = module
    found = ", ".join(f"`{name}`" for name in _classes_of(module)) or "no class"
    owner = f"module `{module_name}`"
    for name in class_name.split("."):
        try:
            adapter = getattr(adapter, name)
        except AttributeError as error:
            raise AdapterError(
                f"adapter `{path}` does not exist: {owner} has no attribute `{name}`; "
                f"module `{module_name}` defines {found}"
            ) from error
        owner = f"`{name}`"
    if not isinstance(adapter, type):
        kind = _failures.type_name(type(adapter))
        raise AdapterError(
            f"adapter `{path}` is not a class, but of type `{kind}`; module `{module_name}` defines {found}"
        )
    return adapter


def plan_of(adapter: type, loop: EventLoop, after_cancel: str | None = None) -> Plan:
    """Create the plan of an adapter class.

    Args:
        adapter: The class.
        loop: The event loop of the worker.
        after_cancel: The default policy, for tools and classes that do not set one.

    Raises:
        AdapterError: The class has no tools, or a tool that cannot be called.
    """
    try:
        tools = list(_tools_of(adapter))
    except TypeError as error:
        raise AdapterError(f"adapter `{adapter.__qualname__}` cannot be used: {error}") from error
    dynamic = _has(adapter, "execute_tool")
    declared = {tool.spec["name"] for tool in tools}
    dynamic_names = [name for name in getattr(adapter, "dynamic_tools", ()) if name not in declared]
    if dynamic_names and not dynamic:
        raise AdapterError(f"adapter `{adapter.__qualname__}` lists dynamic_tools but has no method `execute_tool`")
    if not tools and not dynamic:
        raise AdapterError(f"adapter `{adapter.__qualname__}` has no tools; mark its methods with @tool")
    policy = getattr(adapter, "after_cancel", None) or after_cancel or "auto"
    if policy not in AFTER_CANCEL:
        raise AdapterError(f"after_cancel is {policy!r}; it takes {', '.join(AFTER_CANCEL)}")
    return Plan(adapter, loop, tools, [_specs.dynamic_spec_of(name, adapter) for name in dynamic_names], policy)


def init_process(adapter: type, loop: EventLoop) -> None:
    """Run the adapter's ``process_init``, if it has one. Tasks that it starts live as long as the worker.

    Raises:
        AdapterError: It failed with the cause of this error.
    """
    hook: Any = getattr(adapter, "process_init", None)
    if not callable(hook):
        return
    try:
        result = hook()
        if result is not None:
            import inspect

            if inspect.isawaitable(result):
                loop.run(result, keep_tasks=True)
    except BaseException as error:
        described = _one_line(f"{_failures.type_name(type(error))}: {error}")
        raise AdapterError(f"process_init of adapter `{adapter.__qualname__}` failed: {described}") from error


def construct(adapter: type) -> None:
    """Create an object of the adapter, as each call does, so that a broken constructor fails the start.

    Raises:
        AdapterError: It failed with the cause of this error.
    """
    try:
        adapter()
    except BaseException as error:
        described = _one_line(f"{_failures.type_name(type(error))}: {error}")
        raise AdapterError(
            f"adapter `{adapter.__qualname__}` cannot be constructed: {described}; each call creates an object of this "
            "class without arguments"
        ) from error


def _tools_of(adapter: type) -> Iterator[ToolPlan]:
    """Iterate over the tools of a class and its bases in the order of their definition.

    An override keeps the place of the original.
    """
    names = dict.fromkeys(name for base in reversed(adapter.__mro__) for name in vars(base))
    #: The attributes of the tools so far, by the name of the tool.
    attributes: dict[str, str] = {}
    for attribute in names:
        members = [vars(base)[attribute] for base in adapter.__mro__ if attribute in vars(base)]
        # An override of a tool is the same tool, even without the decorator.
        options = next((found for found in map(_options_of, members) if found is not None), None)
        member = members[0]
        if options is None or member is None:
            # Setting an inherited method to None removes it, as usual in Python.
            continue
        function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
        if not callable(function) and not hasattr(function, "__get__"):
            raise TypeError(
                f"`{attribute}` overrides the tool `{options.name or attribute}` and cannot be called; make it a "
                "method, or set it to None to remove the tool"
            )
        function, bound = _called_function(adapter, member, function)
        spec = _specs.spec_of(function, attribute, options, adapter, bound=bound)
        if spec["name"] in attributes:
            raise TypeError(
                f"methods `{attributes[spec['name']]}` and `{attribute}` are both the tool `{spec['name']}`"
            )
        attributes[spec["name"]] = attribute
        yield ToolPlan(attribute, _signatures.is_generator_function(function), spec, options.after_cancel)


def _options_of(member: object) -> ToolOptions | None:
    function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
    options = getattr(function, TOOL_ATTRIBUTE, None)
    return options if isinstance(options, ToolOptions) else None


def _called_function(adapter: type, member: object, function: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """Return the function that a call reaches, and whether its first parameter is the object or class."""
    if isinstance(member, staticmethod):
        return function, False
    if isinstance(member, classmethod) or _signatures.is_ordinary(function):
        return function, True
    bind = getattr(type(function), "__get__", None)
    if bind is None:
        # Callables without `__get__`, such as a partial, are called without the object.
        return function, False
    if isinstance(function, _signatures.FUNCTION):
        return function, True
    # Only binding a `partialmethod` or a similar descriptor shows the remaining parameters.
    try:
        return bind(function, object(), adapter), False
    except Exception:
        return function, True


def _has(adapter: type, method: str) -> bool:
    return callable(getattr(adapter, method, None))


def _classes_of(module: object) -> list[str]:
    name = getattr(module, "__name__", "")
    return [n for n, member in vars(module).items() if isinstance(member, type) and member.__module__ == name]


def _one_line(text: str) -> str:
    return " ".join(text.split())
