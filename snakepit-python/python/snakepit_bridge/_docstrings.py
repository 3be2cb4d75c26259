"""Parses docstrings in the styles of Google, NumPy and reST without `inspect` and `re`, which are slow to import."""

from __future__ import annotations

from snakepit_bridge._signatures import is_ordinary, underlying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_ARGUMENTS = frozenset(
    {"Args:", "Arguments:", "Parameters:", "Keyword Args:", "Keyword Arguments:", "Other Parameters:"}
)
#: The headers of the sections about arguments in the style of NumPy. A line of dashes follows.
_NUMPY_ARGUMENTS = frozenset({"Parameters", "Other Parameters", "Keyword Arguments"})
#: The fields about arguments in the style of reST.
_FIELDS = frozenset({"param", "parameter", "arg", "argument", "key", "keyword", "kwarg", "type", "paramtype", "kwtype"})
_OTHER_SECTIONS = "Return Returns Raises Yield Yields Example Examples Note Notes Attributes"
#: The headers of sections.
_SECTIONS = _ARGUMENTS | {f"{name}:" for name in _OTHER_SECTIONS.split()}


def docstring_of(function: Callable[..., Any], owner: type) -> str:
    """Return the docstring of a method, or an inherited one, without its indentation."""
    function = underlying(function)
    if is_ordinary(function):
        if isinstance(function.__doc__, str):
            return clean(function.__doc__)
        name = function.__name__
        definitions = [f"{base.__qualname__}.{name}" for base in owner.__mro__ if name in vars(base)]
        if definitions == [function.__qualname__]:
            return ""
    import inspect

    return inspect.getdoc(function) or ""


def read(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into the description and the documentation of the arguments.

    All other sections remain in the description, because callers need to know the results and errors of a tool.
    """
    lines = text.splitlines()
    described: list[str] = []
    docs: dict[str, str] = {}
    index = 0
    while index < len(lines):
        start = index
        if lines[index].rstrip() in _ARGUMENTS:
            index = _end_of_section(lines, start + 1)
            docs.update(_read_arguments(lines[start + 1 : index]))
        elif lines[index].rstrip() in _NUMPY_ARGUMENTS and _is_underlined(lines, index):
            index = _read_numpy_arguments(lines, start + 2, docs)
        elif lines[index].startswith(":") and (field := _field(lines[index])) is not None:
            index = _end_of_field(lines, start + 1)
            name, words = field
            if name:
                docs[name] = " ".join([words, *(line.strip() for line in lines[start + 1 : index])]).strip()
        else:
            described.append(lines[index])
            index += 1
    return "\n".join(described).strip(), docs


def _is_underlined(lines: list[str], index: int) -> bool:
    underline = lines[index + 1].rstrip() if index + 1 < len(lines) else ""
    return len(underline) > 2 and not underline.strip("-")


def _read_numpy_arguments(lines: list[str], index: int, docs: dict[str, str]) -> int:
    """Read ``name : type`` and ``name, name : type``, each with indented text. Return the index after the section."""
    current: list[str] = []
    while index < len(lines):
        line = lines[index]
        if line[:1].isspace():
            for name in current:
                docs[name] = f"{docs[name]} {line.strip()}".strip()
        elif line.strip():
            names = [name.strip().lstrip("*") for name in line.partition(":")[0].split(",")]
            if not all(name.isidentifier() for name in names) or _is_underlined(lines, index):
                break
            current = names
            docs.update(dict.fromkeys(names, ""))
        index += 1
    return index


def _field(line: str) -> tuple[str, str] | None:
    """Parse ``:param name: text`` or ``:param type name: text``. The name is empty for ``:type name: text``."""
    head, separator, words = line[1:].partition(":")
    kind, _, name = head.partition(" ")
    if not separator or kind not in _FIELDS or not name.strip():
        return None
    return "" if "type" in kind else name.split()[-1].lstrip("*\\"), words.strip()


def _end_of_field(lines: list[str], index: int) -> int:
    """Return the index of the first line that does not continue a field."""
    while index < len(lines) and lines[index][:1].isspace() and lines[index].strip():
        index += 1
    return index


def _end_of_section(lines: list[str], start: int) -> int:
    """Return the index at which a section ends.

    A section ends at its first unindented line, or at its first blank line if it is not indented.
    """
    is_indented = start < len(lines) and (not lines[start].strip() or lines[start][:1].isspace())
    for index in range(start, len(lines)):
        line = lines[index]
        if line.rstrip() in _SECTIONS or (line.strip() and is_indented and not line[:1].isspace()):
            return index
        if not is_indented and not line.strip():
            return index
    return len(lines)


def _read_arguments(lines: list[str]) -> dict[str, str]:
    docs: dict[str, str] = {}
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    current = None
    for line in lines:
        argument = None if line[:indent].strip() else _argument(line[indent:])
        if argument is not None:
            current, docs[current] = argument
        elif current and line.strip():
            docs[current] = f"{docs[current]} {line.strip()}".strip()
    return docs


def _argument(line: str) -> tuple[str, str] | None:
    """Parse ``name: text`` or ``name (type): text``."""
    start = len(line) - len(line.lstrip("*"))
    end = start
    while end < len(line) and (line[end].isalnum() or line[end] == "_"):
        end += 1
    rest = line[end:].lstrip()
    if rest.startswith("("):
        rest = rest.partition(")")[2].lstrip()
    if start > 2 or start == end or not rest.startswith(":"):
        return None
    return line[start:end], rest[1:].strip()


def clean(text: str) -> str:
    """Remove the indentation and surrounding blank lines."""
    first, *others = text.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in others if line.strip()), default=0)
    return "\n".join([first.lstrip(), *(line[margin:] for line in others)]).strip("\n")
