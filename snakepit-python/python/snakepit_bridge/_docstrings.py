"""Parses Google-style docstrings without `inspect` and `re`, which take long to import."""

from __future__ import annotations

from snakepit_bridge._signatures import is_ordinary, underlying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_ARGUMENTS = frozenset({"Args:", "Arguments:", "Parameters:"})
_OTHER_SECTIONS = "Return Returns Raises Yield Yields Example Examples Note Notes Attributes"
#: The headers of sections.
_SECTIONS = _ARGUMENTS | {f"{name}:" for name in _OTHER_SECTIONS.split()}


def docstring_of(function: Callable[..., Any], owner: type) -> str:
    """Return the docstring of a method, or an inherited one, without its indentation."""
    function = underlying(function)
    if is_ordinary(function):
        if isinstance(function.__doc__, str):
            return _clean(function.__doc__)
        name = function.__name__
        definitions = [f"{base.__qualname__}.{name}" for base in owner.__mro__ if name in vars(base)]
        if definitions == [function.__qualname__]:
            return ""
    import inspect

    return inspect.getdoc(function) or ""


def read(text: str) -> tuple[str, dict[str, str]]:
    """Split a Google-style docstring into the description and the documentation of the arguments.

    All other sections remain in the description, because callers need to know the results and errors of a tool.
    """
    lines = text.splitlines()
    described: list[str] = []
    docs: dict[str, str] = {}
    index = 0
    while index < len(lines):
        if lines[index].rstrip() in _ARGUMENTS:
            start = index + 1
            index = _end_of_section(lines, start)
            docs.update(_read_arguments(lines[start:index]))
        else:
            described.append(lines[index])
            index += 1
    return "\n".join(described).strip(), docs


def _end_of_section(lines: list[str], start: int) -> int:
    """Return the index of the end of a section.

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


def _clean(text: str) -> str:
    """Remove the indentation and surrounding blank lines."""
    first, *others = text.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in others if line.strip()), default=0)
    return "\n".join([first.lstrip(), *(line[margin:] for line in others)]).strip("\n")
