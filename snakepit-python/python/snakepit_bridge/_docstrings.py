"""Google-style docstrings. Reads them as `inspect` and a few patterns of `re` would, without importing either."""

from __future__ import annotations

from snakepit_bridge._signatures import is_ordinary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_ARGUMENTS = frozenset({"Args:", "Arguments:", "Parameters:"})
_OTHERS = "Return Returns Raises Yield Yields Example Examples Note Notes Attributes"
#: The headers that end the description and the arguments.
_SECTIONS = _ARGUMENTS | {f"{name}:" for name in _OTHERS.split()}


def docstring_of(function: Callable[..., Any], owner: type) -> str:
    """Get the docstring of a method, or the one that it inherits, without its indentation."""
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
    """Split a Google-style docstring into what stands before its sections and what its arguments mean."""
    lines = text.splitlines()
    sections = [index for index, line in enumerate(lines) if line.rstrip() in _SECTIONS]
    description = "\n".join(lines[: sections[0]] if sections else lines).strip()
    docs: dict[str, str] = {}
    ends = [*sections[1:], len(lines)]
    # Without a section there is one end more than there are starts.
    for start, end in zip(sections, ends, strict=False):
        if lines[start].rstrip() in _ARGUMENTS:
            docs.update(_read_arguments(lines[start + 1 : end]))
    return description, docs


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
    """Take ``name: text`` or ``name (type): text`` apart."""
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
    """Take the indentation away, and what is blank around the text."""
    first, *others = text.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in others if line.strip()), default=0)
    return "\n".join([first.lstrip(), *(line[margin:] for line in others)]).strip("\n")
