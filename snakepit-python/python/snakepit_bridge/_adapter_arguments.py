"""Assigns adapter arguments to the functions that take them, and converts each by its type hint."""

from __future__ import annotations

from snakepit_bridge import _failures, _signatures
from snakepit_bridge._plan import AdapterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from snakepit_bridge._hints.base import Hint
    from snakepit_bridge._hints.compiler import Compiler

#: The environment variable with the arguments, as a JSON object.
VARIABLE = "SNAKEPIT_ADAPTER_ARGS"


#: Python literals that are not JSON, with their JSON forms.
_PYTHON = {"True": "true", "False": "false", "None": "null"}


class Receiver:
    """A function that takes arguments of an adapter.

    Args:
        label: Its description for messages.
        function: The function.
        bound: Whether its first parameter is an object or a class.
    """

    def __init__(self, label: str, function: Callable[..., Any], *, bound: bool) -> None:
        self.label = label
        self._function = function
        parameters = _signatures.parameters_of(function)
        parameters = parameters[1:] if bound else parameters
        named = (_signatures.POSITIONAL_OR_KEYWORD, _signatures.KEYWORD_ONLY)
        #: The defaults of named parameters.
        self._defaults = {p.name: p.default for p in parameters if p.kind in named}
        #: Whether each named parameter needs an argument.
        self.parameters = {name: default is _signatures.EMPTY for name, default in self._defaults.items()}
        self.takes_any = any(p.kind == _signatures.VAR_KEYWORD for p in parameters)

    def converted(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that the function takes.

        Raises:
            AdapterError: One is missing or has the wrong type.
        """
        for name, is_required in self.parameters.items():
            if is_required and name not in given:
                raise AdapterError(
                    f"adapter argument `{name}` is missing, which {self.label} needs; pass it with --adapter-arg "
                    f"{name}=VALUE"
                )
        taken = {name: value for name, value in given.items() if self.takes_any or name in self.parameters}
        if not taken:
            return taken
        # Not imported at startup, because most adapters have no arguments.
        from snakepit_bridge._hints.compiler import Compiler

        compiler = Compiler(_signatures.namespace_of(self._function))
        hints = _signatures.annotations_of(self._function)
        return {name: self._converted(compiler, name, hints.get(name), value) for name, value in taken.items()}

    def _converted(self, compiler: Compiler, name: str, annotation: Any, value: Any) -> Any:
        from snakepit_bridge._contract import with_default
        from snakepit_bridge._hints.base import HintError, InvalidError

        try:
            hint = compiler.top_level(_signatures.EMPTY if annotation is None else annotation)
            hint, _ = with_default(hint, self._defaults.get(name, _signatures.EMPTY))
            return _read(hint, value)
        except HintError as error:
            place = _signatures.place_of(self._function)
            raise AdapterError(f"the hint of `{name}` of {self.label} {error}{place}") from None
        except InvalidError as error:
            problems = [f"`{name}{path}` of {self.label} {problem}" for path, problem in error.problems]
            json_form = _PYTHON.get(value) if isinstance(value, str) else None
            advice = f"; `{value}` is `{json_form}` in JSON" if json_form else ""
            raise AdapterError(f"adapter argument {'; '.join(problems)}{advice}") from None


def read(text: str | None) -> dict[str, Any]:
    """Read the arguments of this worker from its environment variable.

    Raises:
        AdapterError: The variable is not a JSON object.
    """
    if not text:
        return {}
    import json

    try:
        given = json.loads(text)
    except ValueError as error:
        raise AdapterError(f"the environment variable {VARIABLE} is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise AdapterError(f"the environment variable {VARIABLE} is not a JSON object")
    return given


def check_names(given: Iterable[str], receivers: Iterable[Receiver], adapter: type) -> None:
    """Check that a function takes each argument.

    Raises:
        AdapterError: No function takes one of them.
    """
    receivers = list(receivers)
    if any(receiver.takes_any for receiver in receivers):
        return
    names = list(dict.fromkeys(name for receiver in receivers for name in receiver.parameters))
    for name in given:
        if name not in names:
            known = f"takes {', '.join(f'`{known}`' for known in names)}" if names else "takes none"
            raise AdapterError(f"adapter argument `{name}` is unknown; adapter `{adapter.__qualname__}` {known}")


def _read(hint: Hint, value: Any) -> Any:
    """Convert a JSON value by a hint. A string may also be JSON, because a command line has only strings.

    Raises:
        InvalidError: The value contradicts the hint.
    """
    from snakepit_bridge._hints.base import InvalidError

    try:
        return hint.read(value)
    except InvalidError:
        parsed = _parsed(value) if isinstance(value, str) else value
        if isinstance(parsed, str) or parsed is value:
            raise
    return hint.read(parsed)


def _parsed(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


def receiver_of_class(adapter: type) -> Receiver | None:
    """Return the constructor of a class, or `None` if it takes no arguments."""
    for method in ("__init__", "__new__"):
        function = getattr(adapter, method)
        if function is not getattr(object, method):
            try:
                return Receiver(f"`{method}` of adapter `{adapter.__qualname__}`", function, bound=True)
            except (TypeError, ValueError):
                # A constructor in C without a signature. Creating an object shows whether it works.
                return None
    return None


def receiver_of_hook(name: str, hook: Callable[..., Any], adapter: type) -> Receiver:
    """Return a hook as a receiver.

    Raises:
        AdapterError: It needs an object of the adapter.
    """
    function = getattr(hook, "__func__", hook)
    label = f"`{name}` of adapter `{adapter.__qualname__}`"
    try:
        receiver = Receiver(label, function, bound=hasattr(hook, "__self__"))
    except (TypeError, ValueError) as error:
        described = _failures.type_name(type(error))
        raise AdapterError(f"{label} has no signature: {described}: {error}") from None
    if receiver.parameters.get("self"):
        raise AdapterError(f"{label} is a method of objects, but runs before there is one; make it a class method")
    return receiver
