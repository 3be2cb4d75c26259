"""Encodes values for protobuf messages, with the names of the original Snakepit. The runtime itself does not need it.

Values that JSON cannot hold become markers, as `GracefulJSONEncoder` describes. Environment variables control them:

- ``SNAKEPIT_UNSERIALIZABLE_DETAIL``: ``none`` (the default), ``type``, ``repr_truncated``, or
  ``repr_redacted_truncated``, which removes common forms of secrets,
- ``SNAKEPIT_UNSERIALIZABLE_REPR_MAXLEN``: the maximum length of a representation, 500 by default, at most 2000,
- ``SNAKEPIT_TOLIST_MAX_ELEMENTS``: the maximum number of items of an array that becomes a list, 1,000,000 by default.
"""

from __future__ import annotations

import json
import math
import os
import re
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _native

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: The keys of a marker for a value that JSON cannot hold.
UNSERIALIZABLE_KEY, TYPE_KEY, REPR_KEY = "__snakepit_unserializable__", "__type__", "__repr__"

_URL = "type.googleapis.com/snakepit."

#: The types of numbers, and of strings.
_NUMBERS, _TEXTS = frozenset({"float", "integer"}), frozenset({"string", "choice", "module"})

_SPECIAL_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

#: Texts that look like secrets, with their replacements.
_SECRETS = (
    (re.compile(r"(?i)\bbearer\s+[\w\-.~+/]+=*"), "Bearer <REDACTED>"),
    (re.compile(r"\bsk-[A-Za-z0-9]{10,}"), "sk-<REDACTED>"),
    (re.compile(r"(?i)((?:api[_-]?key|token|secret|password)[\"']?\s*[:=]\s*[\"'])[^\"']+"), r"\1<REDACTED>"),
)


class GracefulJSONEncoder(json.JSONEncoder):
    """A JSON encoder that accepts any value.

    Objects with ``model_dump``, ``to_dict``, ``_asdict``, ``tolist`` or ``isoformat`` become the result of that method.
    All others become a marker: ``{"__snakepit_unserializable__": true, "__type__": "shop.Item"}``.
    """

    def default(self, o: Any) -> Any:
        """Return a form that JSON can hold."""
        form = original_form(o)
        return original_marker(o) if form is NotImplemented else form


def original_form(value: Any) -> Any:
    """Return the form of an object that one of its methods creates, or ``NotImplemented``."""
    # A class has the methods, but none of its own values.
    if isinstance(value, type):
        return NotImplemented
    for name in ("model_dump", "to_dict", "_asdict", "tolist", "isoformat"):
        try:
            method = getattr(value, name, None)
            if callable(method) and not (name == "tolist" and _is_too_large(value)):
                return method()
        except Exception:  # noqa: S112
            continue
    return NotImplemented


class TypeSerializer:
    """Converts values to and from ``google.protobuf.Any``. Needs the package protobuf."""

    @staticmethod
    def encode_any(value: Any, var_type: str) -> tuple[Any, bytes | None]:
        """Encode a value of a type, such as ``float``.

        Returns:
            The ``Any`` message, and the buffer of an array, which belongs in a separate field of the message.

        Raises:
            ValueError: The value has another type.
        """
        from google.protobuf.any_pb2 import Any as AnyMessage

        kind, data, buffer = _encoded(_normalized(value, var_type), var_type)
        return AnyMessage(type_url=f"{_URL}{kind}", value=data), buffer

    @staticmethod
    def decode_any(any_msg: Any, binary_data: bytes | None = None) -> Any:
        """Decode the value of an ``Any`` message and its buffer. Tensors become numpy arrays.

        The original pickles large tensors. They are read only with ``SNAKEPIT_ALLOW_PICKLE=1``, because a pickle runs
        code of its sender.

        Raises:
            ValueError: The value is malformed, or a pickle while pickles are not allowed.
        """
        kind = any_msg.type_url.rpartition("/")[2].removeprefix("snakepit.")
        if kind.endswith(".binary"):
            value = _native.decode(kind.removesuffix(".binary"), any_msg.value, binary_data)
            # A pickle of the original contains the numbers as a list.
            return _array(value, json.loads(any_msg.value)) if isinstance(value, list) else value
        if kind in ("tensor", "embedding") and binary_data is None:
            return _native.decode(kind, any_msg.value)
        value = json.loads(any_msg.value)
        if kind == "float":
            return float(_SPECIAL_FLOATS.get(value, value)) if isinstance(value, str) else float(value)
        return int(value) if kind == "integer" else _reference(value)

    @staticmethod
    def validate_constraints(value: Any, var_type: str, constraints: Mapping[str, Any]) -> None:
        """Check a value against the constraints of a variable.

        Raises:
            ValueError: It breaks a constraint.
        """
        problem = _problem(value, var_type, constraints)
        if problem is not None:
            raise ValueError(f"the value is {problem}")


def type_of(value: Any) -> str:
    """Return the type name of a value."""
    # A bool is an int.
    kinds = ((bool, "boolean"), (int, "integer"), (float, "float"), (str, "string"), (list, "list"), (dict, "map"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null" if value is None else "map")


def _normalized(value: Any, kind: str) -> Any:
    from snakepit_bridge.zero_copy import ZeroCopyRef

    if isinstance(value, ZeroCopyRef):
        return value.to_payload()
    if kind in _TEXTS:
        return str(value)
    if kind == "boolean" and not isinstance(value, bool):
        raise ValueError(f"expected a boolean, got `{type(value).__name__}`")
    if kind in _NUMBERS:
        is_number = isinstance(value, int | float)
        if not is_number or (kind == "integer" and value != value // 1):
            raise ValueError(f"expected a value of type {kind}, got {value!r}")
        return float(value) if kind == "float" else int(value)
    return value


def _encoded(value: Any, kind: str) -> tuple[str, bytes, bytes | None]:
    """Return the type on the wire, the JSON, and the buffer of an array."""
    if kind in ("tensor", "embedding"):
        if isinstance(value, dict) and {"shape", "data"} <= value.keys():
            import numpy as np

            value = np.asarray(value["data"]).reshape(value["shape"])
        elif kind == "embedding" and not hasattr(value, "dtype"):
            return kind, json.dumps([float(item) for item in value]).encode(), None
        encoded, data, buffer = _native.encode(value, "the value")
        return (f"{encoded}.binary" if buffer is not None else encoded), data, buffer
    if kind == "float" and not math.isfinite(value):
        text = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return kind, json.dumps(text).encode(), None
    return kind, json.dumps(value, cls=GracefulJSONEncoder).encode(), None


def _array(numbers: list[Any], metadata: Mapping[str, Any]) -> Any:
    """Return the array of a pickled list."""
    import numpy as np

    return np.asarray(numbers, dtype=metadata.get("dtype") or None).reshape(metadata.get("shape", -1))


def _reference(value: Any) -> Any:
    if isinstance(value, dict) and value.get("__snakepit_zero_copy__"):
        from snakepit_bridge.zero_copy import ZeroCopyRef

        return ZeroCopyRef.from_payload(value)
    return value


def _problem(value: Any, kind: str, constraints: Mapping[str, Any]) -> str | None:
    """Return the rest of a sentence about the first constraint that the value breaks."""
    bound: Callable[[str], Any] = constraints.get
    if kind in _NUMBERS:
        if bound("min") is not None and value < bound("min"):
            return f"below minimum {bound('min')}: {value}"
        if bound("max") is not None and value > bound("max"):
            return f"above maximum {bound('max')}: {value}"
    elif kind == "string":
        if len(value) < (bound("min_length") or 0):
            return f"shorter than {bound('min_length')} characters"
        if bound("max_length") is not None and len(value) > bound("max_length"):
            return f"longer than {bound('max_length')} characters"
    elif kind in ("choice", "module"):
        accepted = bound("choices" if kind == "choice" else "allowed_modules")
        if accepted and value not in accepted:
            return f"{value!r}, but must be one of {', '.join(map(repr, accepted))}"
    elif kind == "embedding":
        if bound("dimensions") and len(value) != bound("dimensions"):
            return f"an embedding with {len(value)} dimensions instead of {bound('dimensions')}"
    elif kind == "tensor" and bound("shape"):
        shape = list(value["shape"] if isinstance(value, dict) else value.shape)
        if shape != list(bound("shape")):
            return f"a tensor of shape {shape} instead of {list(bound('shape'))}"
    return None


def _is_too_large(value: Any) -> bool:
    limit = _number("SNAKEPIT_TOLIST_MAX_ELEMENTS", 1_000_000)
    # A sparse matrix has the size of its items, and becomes a list of all places.
    count = math.prod(getattr(value, "shape", ())) or getattr(value, "size", 0)
    return isinstance(count, int) and count > limit


def original_marker(value: Any) -> dict[str, Any]:
    """Return the marker of an object without a form."""
    name = f"{type(value).__module__}.{type(value).__name__}"
    marker = {UNSERIALIZABLE_KEY: True, TYPE_KEY: name}
    mode = os.environ.get("SNAKEPIT_UNSERIALIZABLE_DETAIL", "none").strip().lower()
    if mode == "type":
        marker[REPR_KEY] = f"<unserializable {name}>"
    elif mode in ("repr_truncated", "repr_redacted_truncated"):
        try:
            text = repr(value)
        except Exception:
            text = f"<{name} without a representation>"
        for pattern, replacement in _SECRETS if mode == "repr_redacted_truncated" else ():
            text = pattern.sub(replacement, text)
        marker[REPR_KEY] = text[: min(_number("SNAKEPIT_UNSERIALIZABLE_REPR_MAXLEN", 500), 2000)]
    return marker


def _number(variable: str, default: int) -> int:
    try:
        return max(int(os.environ[variable]), 0)
    except (KeyError, ValueError):
        return default
