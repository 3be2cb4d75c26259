"""Describes exceptions of tools for the host: type, message, and a traceback without frames of the runtime."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Any


class BrokenRuntimeError(Exception):
    """The runtime cannot continue, and the running call is not the cause. The worker is replaced."""


#: The files of this package whose frames precede those of a tool in a traceback.
_RUNTIME_FILES = tuple(
    __file__.replace("_failures.py", name)
    for name in ("_event_loop.py", "_running_loop.py", "_concurrent.py", "_answering.py", "_contract.py", "_hints")
)


#: The maximum number of exceptions in a group whose traceback contains all of them.
_MAX_FORMATTED = 1000


def describe(
    error: BaseException,
    function: Callable[..., Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[str, str, str]:
    """Return the type name, the message and the traceback of an exception.

    Args:
        error: The exception.
        function: The called function, if it is the tool itself.
        arguments: The arguments of the call.
    """
    # Imported late: it costs startup time and memory, and many workers never need it.
    import traceback

    if _lacks_terminal(error):
        error.add_note("tools have no terminal; `snakepit dev --debug` connects them to yours")
    frames = _without_runtime(error.__traceback__)
    try:
        if _is_large(error):
            # The time of the whole traceback could exceed the deadline of the call.
            lines = ["Traceback (most recent call last):\n", *traceback.format_tb(frames)]
            lines.append(f"{type_name(type(error))}: {_message(error)}\n")
        else:
            lines = traceback.format_exception(type(error), error, frames)
    except Exception:  # Attributes of the exception may raise. Its frames are still useful.
        lines = traceback.format_tb(frames)
    # A TypeError without frames comes from the call itself: the arguments do not match the signature.
    is_mismatch = type(error) is TypeError and frames is None and function is not None
    message = _mismatch(function, arguments) if is_mismatch and function is not None and arguments is not None else None
    name, own_message = _type_and_message(error)
    return name, _text(message) if message else own_message, _text("".join(lines))


def _lacks_terminal(error: BaseException) -> bool:
    """Return whether ``input()`` or a debugger read the end of the standard input of a worker without a terminal."""
    worker, bdb = sys.modules.get("snakepit_bridge.worker"), sys.modules.get("bdb")
    if worker is None or not worker.is_running or "snakepit_bridge._terminal" in sys.modules:
        return False
    if type(error) is EOFError:
        return error.args == ("EOF when reading a line",)
    return bdb is not None and type(error) is bdb.BdbQuit


def load_traceback(error: BaseException) -> str | None:
    """Return the traceback of the code of an adapter that could not be loaded. ``None`` if no such code ran."""
    import traceback

    runtime = (os.path.join(os.path.dirname(__file__), ""), *_asyncio_files())  # noqa: PTH118, PTH120  Without `pathlib`.
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(runtime):
        frames = frames.tb_next
    if frames is None and not isinstance(error, SyntaxError):
        return None
    return _text("".join(traceback.format_exception(type(error), error, frames)))


def details(error: BaseException) -> tuple[str, bytes]:
    """Return the code of an exception, and its other parts as a JSON object. Leaves out values without a JSON form.

    The keys of the object are those of ``ToolFailure.details_json`` in the protocol.
    """
    code, parts = _parts(error, _Chain(error))
    return code, f"{{{', '.join(parts)}}}".encode() if parts else b""


#: The attribute of an exception with the code and the data of a failure that has another class.
FAILURE_ATTRIBUTE = "__snakepit_failure__"


def _is_large(error: BaseException) -> bool:
    """Return whether an exception is a group that, with its members and causes, has too many exceptions to format."""
    if not isinstance(error, BaseExceptionGroup):
        return False
    pending: list[BaseException] = [error]
    count = 0
    while pending:
        found = pending.pop()
        count += 1
        if count > _MAX_FORMATTED:
            return True
        pending += (linked for linked in (found.__cause__, found.__context__) if linked is not None)
        if isinstance(found, BaseExceptionGroup):
            pending += found.exceptions[:_MAX_FORMATTED]
    return False


def _passed_on(error: BaseException) -> Any:
    """Return an error of another tool that this tool did not catch, and whose class this process does not have."""
    errors = sys.modules.get("snakepit_bridge.errors")
    return error if errors is not None and type(error) is errors.ToolFailed else None


def _omitted_before(error: BaseException) -> list[str]:
    """Return the names of the fields that were left out when another tool raised the exception."""
    errors = sys.modules.get("snakepit_bridge.errors")
    # The exception may have the class of the other tool.
    if errors is None or not issubclass(type(error), errors.ToolFailed):
        return []
    try:
        return [name for name in error.failure.omitted if name in _PARTS]  # type: ignore[attr-defined]
    except Exception:  # A class may override the attribute.
        return []


def _type_and_message(error: BaseException) -> tuple[str, str]:
    """Return the type and the message of an exception. Those of another tool's error are those that the tool raised."""
    failed = _passed_on(error)
    if failed is not None and isinstance(failed.type, str) and isinstance(failed.message, str):
        return _text(failed.type), _text(failed.message)
    return _text(type_name(type(error))), _text(_message(error))


def _code_and_data(error: BaseException) -> tuple[str, Any]:
    from snakepit_bridge.errors import HostToolError, ToolError, ToolFailed

    code: Any
    if isinstance(error, ToolFailed):
        code, data = error.failure.code, error.failure.data
    elif isinstance(error, (ToolError, HostToolError)):
        code, data = error.code, error.data
    else:
        code, data = getattr(error, "__dict__", {}).get(FAILURE_ATTRIBUTE, ("", None))
    return _text(code) if isinstance(code, str) else "", data


def _parts(error: BaseException, chain: _Chain) -> tuple[str, list[str]]:
    """Return the code of an exception, and the entries of the JSON object with its other parts."""
    code, data = _code_and_data(error)
    encoders: dict[str, Callable[[], str | None]] = {}
    if data is not None:
        encoders["data"] = lambda: _json(data)
    encoders["args"] = lambda: _json_args(error)
    encoders["attributes"] = lambda: _json_attributes(error)
    if "__notes__" in getattr(error, "__dict__", ()):
        encoders["notes"] = lambda: _json_notes(error)
    encoders.update(chain.encoders(error))
    parts: list[str] = []
    omitted = [f'"{name}"' for name in _omitted_before(error)]
    for name, encode in encoders.items():
        try:
            text = encode()
        except _TooLargeError:
            omitted.append(f'"{name}"')
        else:
            if text is not None:
                parts.append(f'"{name}": {text}')
    if omitted:
        parts.append(f'"omitted": [{", ".join(omitted)}]')
    return code, parts


#: The fields of a failure that may be left out.
_PARTS = ("args", "attributes", "data", "notes", "cause", "context", "exceptions")
#: The maximum number of exceptions in the chains of a failure.
_MAX_CHAINED = 64
#: The maximum depth of chains and groups.
_MAX_CHAIN_DEPTH = 24
#: The maximum length of the message and of the frames of a chained exception, in characters.
_MAX_CHAINED_TEXT = 16 * 1024


class _Chain:
    """The exceptions to which an exception is linked: its cause, its context, and the members of a group."""

    def __init__(self, error: BaseException) -> None:
        self._seen = {id(error)}
        self._depth = 0
        self._remaining = _MAX_PART_SIZE

    def encoders(self, error: BaseException) -> dict[str, Callable[[], str | None]]:
        """Return functions that encode the linked exceptions of an exception, by the name of the part."""
        found: dict[str, Callable[[], str | None]] = {}
        # Classes may define these attributes as properties that raise.
        try:
            cause, context = error.__cause__, error.__context__
            if context is cause or (error.__suppress_context__ and cause is None):
                context = None
            members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        except Exception:
            return found
        for name, linked in (("cause", cause), ("context", context)):
            if linked is not None and not self._is_remote_traceback(linked):
                found[name] = lambda linked=linked: self._node(linked)  # type: ignore[misc]
        if members:
            found["exceptions"] = lambda: f"[{', '.join(filter(None, map(self._node, members)))}]"
        return found

    def _is_remote_traceback(self, error: BaseException) -> bool:
        errors = sys.modules.get("snakepit_bridge.errors")
        return errors is not None and isinstance(error, errors.RemoteTraceback)

    def _node(self, error: BaseException) -> str | None:
        """Return an exception as a JSON object. ``None`` for one that is in the chain already."""
        if id(error) in self._seen:
            return None
        if len(self._seen) > _MAX_CHAINED or self._depth >= _MAX_CHAIN_DEPTH:
            raise _TooLargeError
        self._seen.add(id(error))
        self._depth += 1
        try:
            code, parts = _parts(error, self)
        finally:
            self._depth -= 1
        name, message = _type_and_message(error)
        texts = {
            "type": name,
            "message": message[:_MAX_CHAINED_TEXT],
            "traceback": _frames(error),
            "code": code,
        }
        parts = [*(f'"{name}": {_json(text)}' for name, text in texts.items() if text), *parts]
        self._remaining -= sum(map(len, parts))
        if self._remaining < 0:
            raise _TooLargeError
        return f"{{{', '.join(parts)}}}"


def _frames(error: BaseException) -> str:
    """Return the last frames of an exception, as in its traceback."""
    import traceback

    lines = traceback.format_tb(_without_runtime(error.__traceback__))
    return _text("".join(lines))[-_MAX_CHAINED_TEXT:]


#: The maximum size of a part of an exception, in characters of JSON. The host does not send larger parts.
_MAX_PART_SIZE = 256 * 1024


class _TooLargeError(Exception):
    """A part of an exception is too large to be sent."""


def _json_args(error: BaseException) -> str | None:
    """Return the arguments that have a JSON form, as a list."""
    texts: list[str] = []
    remaining = _MAX_PART_SIZE
    for value in _args(error):
        text = _json(value, remaining)
        # Values without a JSON form take time, too.
        remaining -= len(text or "") + 2
        if remaining < 0:
            raise _TooLargeError
        if text is not None:
            texts.append(text)
    return f"[{', '.join(texts)}]" if texts else None


def _json_attributes(error: BaseException) -> str | None:
    """Return the published attributes that have a JSON form, as an object."""
    failed = _passed_on(error)
    if failed is not None:
        return _json(failed.attributes) if failed.attributes else None
    entries: list[str] = []
    remaining = _MAX_PART_SIZE
    for name in _published(type(error)):
        # Importing `contextlib` would delay the start of each worker.
        try:
            text = _json(getattr(error, name), remaining)
        except _TooLargeError:
            raise
        except Exception:  # The attribute is a property that raises.
            text = None
        if text is not None:
            remaining -= len(text)
            entries.append(f"{_json(name)}: {text}")
    return f"{{{', '.join(entries)}}}" if entries else None


def _json_notes(error: BaseException) -> str | None:
    """Return the notes of an exception, as a list."""
    notes = vars(error)["__notes__"]
    if not isinstance(notes, (list, tuple)):
        return None
    return _json([_text(str(note)) for note in notes])


def _args(error: BaseException) -> tuple[Any, ...]:
    failed = _passed_on(error)
    if failed is not None:
        return tuple(failed.exception_args)
    # A class may replace `args`.
    return error.args if isinstance(error.args, tuple) else ()


def _published(kind: type) -> list[str]:
    """Return the names of the attributes that an exception class and its bases publish."""
    names: dict[str, None] = {}
    for base in reversed(kind.__mro__):
        published = base.__dict__.get("__snakepit_attributes__", ())
        if isinstance(published, str):
            published = (published,)
        names.update((name, None) for name in published if isinstance(name, str))
    return list(names)


#: Integers with at most this number of digits have at most 64 bits.
_DIGITS = 18


def _is_large_integer(chunk: str) -> bool:
    """Return whether a chunk of JSON is an integer beyond 64 bits, which Rust would read as a float."""
    digits = chunk.lstrip("[{:, \n")
    if not digits.removeprefix("-").isdecimal():
        return False
    return not -(2**63) <= int(digits) < 2**64


def _json(value: Any, limit: int = _MAX_PART_SIZE) -> str | None:
    """Return the JSON form of a value, or ``None`` if it has none. Integers beyond 64 bits have none.

    Raises:
        _TooLargeError: The form has more than ``limit`` characters. The rest of a list or a dictionary is not encoded.
    """
    import json

    if isinstance(value, str) and len(value) > limit:
        raise _TooLargeError
    chunks: list[str] = []
    size = 0
    try:
        # Unlike `dumps`, it encodes the items one by one.
        for chunk in json.JSONEncoder(ensure_ascii=False, allow_nan=False).iterencode(value):
            size += len(chunk)
            if size > limit:
                raise _TooLargeError
            if len(chunk) > _DIGITS and _is_large_integer(chunk):
                return None
            chunks.append(chunk)
        text = "".join(chunks)
        # Fails for lone surrogates.
        text.encode()
    except _TooLargeError:
        raise
    except Exception:
        return None
    return text


def _text(text: str) -> str:
    """Escape lone surrogates, which cannot be encoded as UTF-8. Names of files that are not UTF-8 contain them."""
    return str.encode(text, "utf-8", "backslashreplace").decode("utf-8")


def type_name(kind: type) -> str:
    """Return the name of a type as the last line of a traceback shows it: with its module, unless it is a builtin."""
    # A metaclass may define it as a property that raises.
    try:
        module = kind.__module__
    except Exception:
        module = None
    if module in ("builtins", "__main__"):
        return kind.__qualname__
    # `__module__` may have been assigned another type.
    return f"{module if isinstance(module, str) else '<unknown>'}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # The type is useful even if `__str__` raises.
        return f"<its message cannot be read: {type_name(type(failure))}>"


def _mismatch(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    import inspect

    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(**arguments)
    except TypeError as error:
        parameters = ", ".join(name for name in signature.parameters)
        return f"the arguments do not match `{function.__name__}({parameters})`: {error}"
    return None


def _without_runtime(frames: TracebackType | None) -> TracebackType | None:
    files = _RUNTIME_FILES + _asyncio_files()
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(files):
        frames = frames.tb_next
    return frames


def _asyncio_files() -> tuple[str, ...]:
    """Return the prefix of the files of `asyncio`, if it is imported."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio.__file__ is None:
        return ()
    return (asyncio.__file__.removesuffix("__init__.py"),)
