"""The arguments of an adapter: assigns them to the functions that take them, and converts them by their hints."""

from __future__ import annotations

from snakepit_bridge import _failures, _signatures
from snakepit_bridge._plan import AdapterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

#: The environment variable with the arguments, as a JSON object.
VARIABLE = "SNAKEPIT_ADAPTER_ARGS"

#: The types that a text is converted to, with the values of JSON that they accept and their names in messages.
_CONVERTED: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    str: ((str,), "a string"),
    list: ((list,), "a list"),
    dict: ((dict,), "an object"),
}


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
        #: The parameters that have a name, and whether they need an argument.
        self.parameters = {p.name: p.default is _signatures.EMPTY for p in parameters if p.kind in named}
        self.takes_any = any(p.kind == _signatures.VAR_KEYWORD for p in parameters)

    def converted(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that the function takes.

        Raises:
            AdapterError: One is missing or has the wrong type.
        """
        for name, is_required in self.parameters.items():
            if is_required and name not in given:
                raise AdapterError(
                    f"adapter argument `{name}` is missing, which {self.label} needs; pass it by --adapter-arg "
                    f"{name}=VALUE"
                )
        taken = {name: value for name, value in given.items() if self.takes_any or name in self.parameters}
        if not taken:
            return taken
        hints = _signatures.annotations_of(self._function)
        return {name: self._converted(name, hints.get(name), value) for name, value in taken.items()}

    def _converted(self, name: str, hint: Any, value: Any) -> Any:
        try:
            return convert(hint, value)
        except ValueError as error:
            raise AdapterError(f"adapter argument `{name}` of {self.label} {error}") from None


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


def convert(hint: Any, value: Any) -> Any:
    """Convert a JSON value by a hint. A text may stand for any value, because a command line has only texts.

    Raises:
        ValueError: The value does not match. The message is a predicate.
    """
    hint, is_optional = _without_none(hint)
    if value is None and is_optional:
        return None
    known = _CONVERTED.get(getattr(hint, "__origin__", hint)) if _is_hashable(hint) else None
    if known is None:
        return _constructed(hint, value)
    accepted, expected = known
    if isinstance(value, str) and str not in accepted:
        value = _parsed(value)
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        raise ValueError(f"is {value!r}, expected {expected}")
    converted: Any = value
    return float(converted) if hint is float else converted


def _constructed(hint: Any, value: Any) -> Any:
    """Return a path for a hint such as `Path`, and any other value unchanged."""
    if isinstance(hint, type) and hint.__module__.startswith("pathlib"):
        if not isinstance(value, str):
            raise ValueError(f"is {value!r}, expected a path")
        return hint(value)
    return value


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Return the other member of a union with `None`, and whether the hint is such a union."""
    members = getattr(hint, "__args__", ())
    if not isinstance(members, tuple) or type(None) not in members:
        return hint, hint is None or hint is type(None)
    others = [member for member in members if member is not type(None)]
    return (others[0] if len(others) == 1 else object), True


def _parsed(text: str) -> Any:
    import json

    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


def _is_hashable(hint: Any) -> bool:
    try:
        hash(hint)
    except TypeError:
        return False
    return True


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
