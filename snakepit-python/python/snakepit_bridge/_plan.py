"""Creates a `Plan` from an adapter class: the information that the native runtime needs to run it."""

from __future__ import annotations

from snakepit_bridge import _contexts, _current, _signatures, _specs
from snakepit_bridge._event_loop import EventLoop, drain
from snakepit_bridge._tool_metadata import METADATA_ATTRIBUTE
from snakepit_bridge.base_adapter import (
    AFTER_CANCEL,
    FUNCTIONS_ATTRIBUTE,
    TOOL_ATTRIBUTE,
    ToolOptions,
    attributes_of,
    tool,
)
from snakepit_bridge.chunks import StreamChunk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from snakepit_bridge._concurrency import Concurrency
    from snakepit_bridge._contract import Contract
    from snakepit_bridge._native import Call, ConcurrentCalls
    from snakepit_bridge.session_context import SessionContext

    #: A tool: the attribute of the adapter, the name of the method or function, its options, the function that a call
    #: reaches, and whether the first parameter of the function is the object or class.
    Member = tuple[str, str, ToolOptions, Callable[..., Any], bool]


@tool
def _unmarked() -> None:
    pass


#: The options of functions that are tools without the decorator.
_DEFAULT_OPTIONS: ToolOptions = getattr(_unmarked, TOOL_ATTRIBUTE)


class AdapterError(Exception):
    """An adapter cannot be used. The message contains the reason and the fix."""


class ToolPlan:
    """One declared tool."""

    def __init__(
        self,
        attribute: str,
        function: Callable[..., Any],
        spec: _specs.ToolSpec,
        contract: Contract,
        options: ToolOptions,
    ) -> None:
        self.attribute = attribute
        self.is_generator = _signatures.is_generator_function(function)
        self.is_plain = _signatures.is_plain_function(function)
        self.spec = spec
        self.contract = contract
        self.after_cancel = options.after_cancel
        self.concurrency = options.concurrency


class Plan:
    """The information that the native runtime reads. Mirrors `plan.rs`."""

    def __init__(
        self,
        adapter: type,
        loop: EventLoop,
        tools: list[ToolPlan],
        dynamic: list[_specs.ToolSpec],
        after_cancel: str,
        concurrency: Concurrency | None,
    ) -> None:
        self.factory: Callable[[], object] = adapter
        self.tools = tools
        self.dynamic_specs = dynamic
        self.has_context = _has(adapter, "set_session_context")
        self.has_initialize = _has(adapter, "initialize")
        self.has_cleanup = _has(adapter, "cleanup")
        self.is_dynamic = _has(adapter, "execute_tool")
        #: Whether `execute_tool` serves any name.
        self.serves_any_tool = serves_all_tools(adapter)
        #: Whether calls pass the parameters of `execute_tool` by name.
        self.executes_by_name = self.is_dynamic and _takes_names(adapter)
        self.load_context = _load_context
        #: The contexts of running calls, by thread.
        self.running = _current.RUNNING
        self.run_async = loop.run
        self.drain_async = drain
        self.end_async = loop.end_call
        self.turn_async = loop.turn
        self.loop_fileno = loop.fileno
        self.contexts = _contexts.base_context
        #: Restores the signals, trace functions and standard streams of the worker after a call.
        self.restore: Callable[[], None] | None = None
        #: Writes the output that the standard streams still hold.
        self.flush_output: Callable[[], None] | None = None
        #: Writes the unfinished lines of a call that has ended, in a worker that runs several.
        self.end_output: Callable[[SessionContext], None] | None = None
        #: The policy of tools that do not set one.
        self.after_cancel = after_cancel
        #: The modules that define the adapter and its bases.
        self.modules = frozenset(base.__module__ for base in adapter.__mro__)
        self.describe = _describe
        self.details = _details
        self.chunk = StreamChunk
        #: The numbers of calls that run together: of all tools, and of coroutines whose tools set no number.
        self.calls, self.concurrency = (1, 1) if concurrency is None else (concurrency.calls, concurrency.shared)
        #: The number of threads for synchronous functions.
        self.threads = 0 if concurrency is None else concurrency.threads
        self.are_dynamic_plain = self.is_dynamic and _signatures.is_plain_function(getattr(adapter, "execute_tool"))  # noqa: B009
        self._loop = loop

    def serve(self, calls: ConcurrentCalls) -> None:
        """Run calls concurrently."""
        self._loop.serve(calls, self)


def _describe(
    error: BaseException,
    function: Callable[..., Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[str, str, str]:
    # Imported late to keep the start fast. The runtime imports the module before the first call.
    from snakepit_bridge import _failures

    return _failures.describe(error, function, arguments)


def _details(error: BaseException) -> tuple[str, bytes]:
    from snakepit_bridge import _failures

    return _failures.details(error)


def _load_context() -> Callable[[Call], SessionContext]:
    """Return the class of session contexts. The runtime calls it late to keep the start fast."""
    from snakepit_bridge.session_context import SessionContext

    return SessionContext


def plan_of(
    adapter: type,
    loop: EventLoop,
    after_cancel: str | None = None,
    concurrency: int | None = None,
    threads: int | None = None,
) -> Plan:
    """Create the plan of an adapter class.

    Args:
        adapter: The class.
        loop: The event loop of the worker.
        after_cancel: The default policy, for tools and classes that do not set one.
        concurrency: The number of concurrent calls that the pool sets.
        threads: The number of threads that the host sets.

    Raises:
        AdapterError: The class has no tools, or a tool that cannot be called.
    """
    dynamic, serves_all = _has(adapter, "execute_tool"), serves_all_tools(adapter)
    tools: list[ToolPlan] = []
    dynamic_specs: list[_specs.ToolSpec] = []
    try:
        if serves_all:
            dynamic_specs = list(_specs_of(adapter))
        else:
            tools = list(_tools_of(adapter))
        numbers = _concurrency_of(adapter, tools, concurrency, threads)
    except TypeError as error:
        raise AdapterError(f"adapter `{adapter.__qualname__}` cannot be used: {error}") from error
    declared = {tool.spec["name"] for tool in tools}
    dynamic_names = [name for name in getattr(adapter, "dynamic_tools", ()) if name not in declared]
    if dynamic_names and not dynamic:
        raise AdapterError(f"adapter `{adapter.__qualname__}` lists dynamic_tools but has no method `execute_tool`")
    if not tools and not dynamic:
        raise AdapterError(f"adapter `{adapter.__qualname__}` has no tools; mark its methods with @tool")
    policy = getattr(adapter, "after_cancel", None) or after_cancel or "auto"
    if policy not in AFTER_CANCEL:
        raise AdapterError(f"after_cancel is {policy!r}; it takes {', '.join(AFTER_CANCEL)}")
    dynamic_specs += [_specs.dynamic_spec_of(name, adapter) for name in dynamic_names]
    return Plan(adapter, loop, tools, dynamic_specs, policy, numbers)


def serves_all_tools(adapter: type) -> bool:
    """Return whether all tool calls of an adapter class go through ``execute_tool``, as in the original Snakepit.

    The method then handles all arguments: type hints of tools describe arguments, but do not convert or reject them.
    """
    if getattr(adapter, FUNCTIONS_ATTRIBUTE, None) is not None:
        return False
    return _has(adapter, "execute_tool") and not getattr(adapter, "dynamic_tools", ())


def _specs_of(adapter: type) -> Iterator[_specs.ToolSpec]:
    """Describe the methods with ``@tool`` of a class whose ``execute_tool`` serves all tools."""
    names: set[str] = set()
    for _, name, options, function, bound in _methods_of(adapter):
        spec = _specs.described_spec_of(function, name, options, adapter, bound=bound)
        if spec["name"] not in names:
            names.add(spec["name"])
            yield spec


def _takes_names(adapter: type) -> bool:
    """Return whether ``execute_tool`` has the parameters of the original Snakepit, or takes any keywords."""
    try:
        parameters = _signatures.parameters_of(_signatures.underlying(getattr(adapter, "execute_tool")))  # noqa: B009
    except (TypeError, ValueError):
        return False
    names = {parameter.name for parameter in parameters if parameter.kind != _signatures.POSITIONAL_ONLY}
    return names >= {"tool_name", "arguments", "context"}


def _tools_of(adapter: type) -> Iterator[ToolPlan]:
    """Iterate over the tools of a class and its bases in definition order.

    An override keeps the place of the original.

    Raises:
        TypeError: Functions cannot be tools. The message has the problems of all of them, up to a limit.
    """
    functions = getattr(adapter, FUNCTIONS_ATTRIBUTE, None)
    members = _methods_of(adapter) if functions is None else _functions_of(functions)
    #: The names of the methods or functions so far, by the name of the tool.
    names: dict[str, str] = {}
    problems: list[str] = []
    for attribute, name, options, function, bound in members:
        try:
            spec, contract = _specs.spec_of(function, name, options, adapter, bound=bound)
        except (_specs.UnsupportedToolError, TypeError) as error:
            place = _signatures.place_of(function)
            found = error.problems if isinstance(error, _specs.UnsupportedToolError) else [str(error)]
            problems += [f"{problem}{place}" for problem in found]
            continue
        if spec["name"] in names:
            kind = "methods" if functions is None else "functions"
            problems.append(f"{kind} `{names[spec['name']]}` and `{name}` are both the tool `{spec['name']}`")
            continue
        names[spec["name"]] = name
        yield ToolPlan(attribute, function, spec, contract, options)
    if problems:
        raise TypeError(_summary(problems))


#: The maximum number of problems that the error of a start describes.
_MAX_PROBLEMS = 16


def _summary(problems: list[str]) -> str:
    """Return one problem, or several with their number."""
    if len(problems) == 1:
        return problems[0]
    shown = "; ".join(f"({number}) {problem}" for number, problem in enumerate(problems[:_MAX_PROBLEMS], 1))
    more = f"; and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
    return f"it has {len(problems)} problems: {shown}{more}"


def _functions_of(functions: dict[str, tuple[str, Callable[..., Any]]]) -> Iterator[Member]:
    for attribute, (name, function) in functions.items():
        yield attribute, name, _options_of(function) or _DEFAULT_OPTIONS, function, False


def _methods_of(adapter: type) -> Iterator[Member]:
    for attribute in dict.fromkeys(name for base in reversed(adapter.__mro__) for name in vars(base)):
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
        yield attribute, attribute, options, *_called_function(adapter, member, function)


def _options_of(member: object) -> ToolOptions | None:
    attributes = attributes_of(member)
    options = attributes.get(TOOL_ATTRIBUTE)
    if isinstance(options, ToolOptions):
        return options
    # Decorators of adapters for the original Snakepit.
    metadata = attributes.get(METADATA_ATTRIBUTE)
    if metadata is None:
        return None
    return ToolOptions(
        None,
        getattr(metadata, "description", "") or None,
        bool(getattr(metadata, "supports_streaming", False)),
        False,
        None,
        None,
        getattr(metadata, "required_variables", None) or (),
    )


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


def _concurrency_of(
    adapter: type, tools: list[ToolPlan], concurrency: int | None, threads: int | None
) -> Concurrency | None:
    settings = (concurrency, threads, getattr(adapter, "concurrency", None), getattr(adapter, "threads", None))
    if all(setting is None for setting in (*settings, *(tool.concurrency for tool in tools))):
        return None
    from snakepit_bridge._concurrency import Concurrency

    return Concurrency(adapter, tools, concurrency, threads)


def _has(adapter: type, method: str) -> bool:
    return callable(getattr(adapter, method, None))


def one_line(text: str) -> str:
    """Return a string without line breaks."""
    return " ".join(text.split())
