"""Creates the specs of tools from signatures, annotations and docstrings."""

from __future__ import annotations

from snakepit_bridge import _contract, _docstrings, _signatures
from snakepit_bridge._contract import Contract, Hints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NotRequired, TypedDict

    from snakepit_bridge._hints.base import Hint
    from snakepit_bridge.base_adapter import ToolOptions

    class ParameterSpec(TypedDict):
        """One parameter of a tool. Mirrors `ParameterSpec` of the native runtime."""

        name: str
        type: str
        description: str
        required: bool
        #: Missing if a missing argument has no value.
        default: NotRequired[Any]
        #: The JSON Schema, if `type` does not describe all conditions.
        schema: NotRequired[dict[str, Any]]

    class ToolSpec(TypedDict):
        """The description of a tool. Mirrors `ToolSpec` of the native runtime."""

        name: str
        description: str
        parameters: list[ParameterSpec]
        metadata: dict[str, str]
        supports_streaming: bool
        #: Whether the tool accepts no arguments except these parameters.
        closed: bool
        #: The JSON Schemas of the ``**kwargs`` of a tool, of its result, and of the items of a stream.
        others_schema: NotRequired[dict[str, Any]]
        result_schema: NotRequired[dict[str, Any]]
        item_schema: NotRequired[dict[str, Any]]


#: The metadata key of a tool whose arguments the host must not check.
UNCHECKED_KEY = "snakepit.unchecked"


class UnsupportedToolError(Exception):
    """A function cannot be a tool. The argument is the list of its :attr:`problems`."""

    @property
    def problems(self) -> list[str]:
        """All reasons."""
        problems: list[str] = self.args[0]
        return problems

    def __str__(self) -> str:
        return "; ".join(self.problems)


def spec_of(
    function: Callable[..., Any], attribute: str, options: ToolOptions, owner: type, *, bound: bool
) -> tuple[ToolSpec, Contract]:
    """Create the spec and the contract of a tool from its function.

    Args:
        function: The function.
        attribute: The name of the method.
        options: The options of the decorator.
        owner: The adapter class.
        bound: Whether the first parameter is the object or class.

    Raises:
        UnsupportedToolError: The function cannot be a tool.
        TypeError: It has no signature.
    """
    description, argument_docs = _docstrings.read(_encodable(_docstrings.docstring_of(function, owner)))
    name = getattr(_signatures.underlying(function), "__qualname__", None) or attribute
    if name.rpartition(".")[2] != attribute:
        # The name of the function inside of a decorator or a partial would not help.
        name = attribute
    annotations = _signatures.annotations_of(function)
    is_generator = _signatures.is_generator_function(function)
    hints, contract = Hints(function, name), Contract()
    problems: list[str] = []
    parameters, closed = _parameters(function, annotations, argument_docs, hints, contract, name, problems, bound=bound)
    returned = annotations.get("return", _signatures.EMPTY)
    tool_name = options.name or attribute
    try:
        hints.apply_result(contract, returned, is_generator=is_generator)
        _checked_name(tool_name, owner)
    except TypeError as error:
        problems.append(str(error))
    if problems:
        raise UnsupportedToolError(problems)
    spec: ToolSpec = {
        "name": tool_name,
        "description": description if options.description is None else _encodable(options.description),
        "parameters": parameters,
        "metadata": _metadata_of_options(owner, options),
        "supports_streaming": options.supports_streaming or is_generator or contract.item is not None,
        "closed": closed,
    }
    if contract.read is not None:
        # The worker checks all arguments, so that one error reports the problems of all of them.
        spec["metadata"][UNCHECKED_KEY] = "true"
    if contract.others_schema is not None:
        spec["others_schema"] = contract.others_schema
    if contract.result_schema is not None:
        spec["result_schema"] = contract.result_schema
    if contract.item_schema is not None:
        spec["item_schema"] = contract.item_schema
    return spec, contract


def _checked_name(name: str, owner: type) -> str:
    if name != _encodable(name):
        raise TypeError(
            f"tool {name!a} of `{owner.__qualname__}` has a name that cannot be encoded as UTF-8; rename it"
        )
    return name


def _encodable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, with escapes. Only for strings that no program compares."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def described_spec_of(
    function: Callable[..., Any], attribute: str, options: ToolOptions, owner: type, *, bound: bool
) -> ToolSpec:
    """Create the spec of a tool whose calls ``execute_tool`` serves. Its hints only describe it, so all are valid."""
    try:
        spec, _ = spec_of(function, attribute, options, owner, bound=bound)
    except (UnsupportedToolError, TypeError):
        spec = dynamic_spec_of(_checked_name(options.name or attribute, owner), owner)
        description, docs = _docstrings.read(_encodable(_docstrings.docstring_of(function, owner)))
        spec["description"] = description if options.description is None else _encodable(options.description)
        spec["metadata"] = _metadata_of_options(owner, options)
        declared = _signatures.parameters_of(function)
        spec["parameters"] = [
            _described_parameter(function, parameter, docs.get(parameter.name, ""))
            for parameter in (declared[1:] if bound else declared)
            if parameter.kind not in (_signatures.VAR_POSITIONAL, _signatures.VAR_KEYWORD)
        ]
    spec["closed"] = False
    spec["metadata"][UNCHECKED_KEY] = "true"
    spec.pop("others_schema", None)
    spec.pop("result_schema", None)
    spec.pop("item_schema", None)
    return spec


def _described_parameter(
    function: Callable[..., Any], parameter: _signatures.Parameter, description: str
) -> ParameterSpec:
    """Return the spec of a parameter, without a hint that is not supported."""
    hint, hints = _signatures.annotations_of(function).get(parameter.name), Hints(function, parameter.name)
    for annotation in (_signatures.EMPTY if hint is None else hint, _signatures.EMPTY):
        try:
            return _parameter(parameter.name, annotation, parameter.default, description, hints)[0]
        except TypeError:
            continue
    raise AssertionError("a parameter without a hint has a spec")


def dynamic_spec_of(name: str, owner: type) -> ToolSpec:
    """Create the spec of a tool that only has a name."""
    return {
        "name": name,
        "description": "",
        "parameters": [],
        "metadata": metadata_of(owner, idempotent=False),
        "supports_streaming": True,
        "closed": False,
    }


def _metadata_of_options(owner: type, options: ToolOptions) -> dict[str, str]:
    metadata = metadata_of(owner, idempotent=options.idempotent)
    if options.required_variables:
        metadata["required_variables"] = ",".join(options.required_variables)
    return metadata


def metadata_of(owner: type, *, idempotent: bool) -> dict[str, str]:
    """Return the metadata of a tool: its class, its module, and whether it is idempotent."""
    metadata = {"adapter_class": owner.__qualname__, "module": owner.__module__}
    if idempotent:
        metadata["snakepit.idempotent"] = "true"
    return metadata


def _parameters(
    function: Callable[..., Any],
    annotations: dict[str, Any],
    docs: dict[str, str],
    hints: Hints,
    contract: Contract,
    name: str,
    problems: list[str],
    *,
    bound: bool,
) -> tuple[list[ParameterSpec], bool]:
    """Return the parameters, and whether the function takes no other arguments.

    Set the converter of arguments, and add all problems of parameters.
    """
    parameters: list[ParameterSpec] = []
    compiled: dict[str, Hint] = {}
    others: Hint | None = None
    factories: dict[str, Callable[[], Any]] = {}

    def add(name: str, annotation: Any, default: Any) -> None:
        spec, hint = _parameter(name, annotation, default, docs.get(name, ""), hints)
        parameters.append(spec)
        if hint is not None:
            compiled[name] = hint

    declared = _signatures.parameters_of(function)
    # A wrapper with `*args` also receives the object through them.
    if _is_wrapper(declared, annotations, bound=bound) or (bound and not _takes_any(declared)):
        declared = declared[1:]
    closed = True
    for parameter in declared:
        annotation = annotations.get(parameter.name, _signatures.EMPTY)
        try:
            if parameter.kind == _signatures.VAR_KEYWORD:
                owner = f"parameter `**{parameter.name}`"
                keys = None if _contract.is_any(annotation) else hints.keys(annotation, owner)
                for key, hint, required in keys or ():
                    add(key, hint, _signatures.EMPTY if required else _signatures.ABSENT)
                closed = keys is not None
                if keys is None and not _contract.is_any(annotation):
                    others = hints.compile(annotation, owner)
                    contract.others_schema = hints.schema(others)
            elif parameter.kind in _NAMELESS:
                problems.append(_nameless(function, parameter, name))
            else:
                default = parameter.default
                if type(default).__name__ == "FieldInfo":
                    from snakepit_bridge._hints.constraints import with_field_info

                    annotation, default, factory = with_field_info(annotation, default)
                    if factory is not None:
                        factories[parameter.name] = factory
                add(parameter.name, annotation, default)
        except TypeError as error:
            problems.append(str(error))
    names = frozenset(parameter["name"] for parameter in parameters)
    if compiled or others is not None or factories:
        contract.read = _contract.Reader(compiled, names, others, factories)
    return parameters, closed


#: The kinds of parameters that take no argument by its name.
_NAMELESS = (_signatures.POSITIONAL_ONLY, _signatures.VAR_POSITIONAL)


def _nameless(function: Callable[..., Any], parameter: _signatures.Parameter, name: str) -> str:
    """Return the problem of a parameter that takes no argument by its name."""
    is_single = parameter.kind == _signatures.POSITIONAL_ONLY
    kind, fix = "the parameter `*", f"take a list instead: `{parameter.name}: list`"
    if is_single:
        kind, fix = "the positional-only parameter `", "remove the `/` from its signature"
    problem = f"tool `{name}` has {kind}{parameter.name}`, but arguments come by name; {fix}"
    if getattr(function, "__name__", name) == name.rpartition(".")[2]:
        return problem
    return f"{problem}. If a decorator hides the signature of the tool, use `functools.wraps` in the decorator"


def _takes_any(declared: list[_signatures.Parameter]) -> bool:
    return bool(declared) and declared[0].kind == _signatures.VAR_POSITIONAL


def _is_wrapper(declared: list[_signatures.Parameter], annotations: dict[str, Any], *, bound: bool) -> bool:
    """Return whether the first parameter is the ``*args`` of a wrapper, which passes all arguments on."""
    if not _takes_any(declared):
        return False
    if any(parameter.kind == _signatures.VAR_KEYWORD for parameter in declared):
        return True
    # A method receives its object through them. With a hint, they are arguments.
    return bound and _contract.is_any(annotations.get(declared[0].name, _signatures.EMPTY))


def _parameter(
    name: str, annotation: Any, default: Any, description: str, hints: Hints
) -> tuple[ParameterSpec, Hint | None]:
    """Return the spec of a parameter, and its hint if it is not plain."""
    required = default is _signatures.EMPTY
    spec: ParameterSpec = {
        "name": name,
        "type": _contract.plain_parameter(annotation, default) or "",
        "description": description,
        "required": required,
        "default": None if required else default,
    }
    is_absent = default is _signatures.ABSENT
    if is_absent:
        del spec["default"]
    if spec["type"]:
        return spec, None
    hint = hints.compile(annotation, f"parameter `{name}`")
    hint, written = _contract.with_default(hint, default)
    spec["type"] = hint.wire
    if not is_absent:
        spec["default"] = written
    spec["description"] = _encodable(getattr(hint, "description", "")) or description
    spec["schema"] = hints.schema(hint)
    # A separate part of the spec.
    spec["schema"].pop("description", None)
    return spec, hint
