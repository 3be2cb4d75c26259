"""The metadata that :func:`snakepit_bridge.tool` leaves on functions, in the form of the original Snakepit."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The attribute of a function that holds its :class:`ToolMetadata`. Adapters look for it.
METADATA_ATTRIBUTE = "_tool_metadata"


class _Fields:
    """Makes a class a dataclass when :mod:`dataclasses` asks, because importing that module would delay each start."""

    def __get__(self, instance: object, owner: type) -> dict[str, Any]:
        from dataclasses import field, make_dataclass

        lists: Any = field(default_factory=list)
        fields = [
            ("description", str, field(default="")),
            ("supports_streaming", bool, field(default=False)),
            ("parameters", list, lists),
            ("required_variables", list, field(default_factory=list)),
        ]
        made: Any = make_dataclass(owner.__name__, fields)
        found: dict[str, Any] = made.__dataclass_fields__
        return found


class ToolMetadata:
    """The metadata of a tool: a dataclass on the function, as ``_tool_metadata``."""

    __dataclass_fields__ = _Fields()
    __match_args__ = ("description", "supports_streaming", "parameters", "required_variables")

    def __init__(
        self,
        description: str = "",
        supports_streaming: bool = False,
        parameters: list[dict[str, Any]] | None = None,
        required_variables: list[str] | None = None,
    ) -> None:
        #: The description for people and language models.
        self.description = description
        #: Whether the tool can be called as a stream.
        self.supports_streaming = supports_streaming
        #: Descriptions of parameters. The runtime reads the signature instead.
        self.parameters = [] if parameters is None else parameters
        #: The names of the session variables that the tool reads.
        self.required_variables = [] if required_variables is None else required_variables

    def __eq__(self, other: object) -> bool:
        """Return whether the other object is metadata with equal parts."""
        return vars(self) == vars(other) if isinstance(other, ToolMetadata) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return a representation with all parts."""
        return f"ToolMetadata({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"
