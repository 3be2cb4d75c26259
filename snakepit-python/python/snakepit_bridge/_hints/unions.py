"""Hints of unions, and of parameters whose default is ``None``."""

from __future__ import annotations

from snakepit_bridge._hints.base import Hint, InvalidError, choices, describe, invalid, show
from snakepit_bridge._hints.scalars import Binary, Null, Text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from snakepit_bridge._hints.base import Schemas
    from snakepit_bridge._hints.scalars import Choice

    #: The problems of a member. The member is ``None`` for a tag that selects none.
    Problems = list[tuple[Hint | None, InvalidError]]


#: The types whose values prefer the member of the same type.
_NUMBERS = (int, float, bool, type(None))


class Union(Hint):
    """One of several hints. The first that accepts a value converts it, but 5 and 5.0 prefer their own types."""

    def __init__(self, members: Iterable[Hint]) -> None:
        self._members = list(_flat(members))
        #: The members in the order in which they read a value. Texts that happen to be base64 stay texts.
        self._readers = self._members
        if any(isinstance(member.unwrapped(), Text) for member in self._members):
            self._readers = sorted(self._members, key=lambda member: isinstance(member.unwrapped(), Binary))
        #: The members that convert all values of exactly a type.
        self._exact: dict[type | None, Hint] = {
            member.exact: member for member in reversed(self._members) if member.exact in _NUMBERS
        }
        for member in self._readers:
            if member.exact is str:
                self._exact[str] = member
            if member.exact not in _NUMBERS:
                # The next members do not read the texts that this one accepts, such as dates.
                break
        #: The fields that select a member. Found late, because members may still be compiled.
        self._tags: list[Tag] | None = None
        wires = {member.wire for member in self._members}
        self.wire = wires.pop() if len(wires) == 1 else "any"
        expected = list(dict.fromkeys(member.expected for member in self._members))
        self.expected = " or ".join([*([", ".join(expected[:-1])] if expected[:-1] else []), expected[-1]])

    def members(self) -> list[Hint]:
        """Return the hints without ``None``."""
        return [member for member in self._members if not isinstance(member, Null)]

    def read(self, value: Any) -> Any:
        exact = self._exact.get(type(value))
        if exact is not None:
            return exact.read(value)
        if isinstance(value, dict) and (tags := self._all_tags()):
            return self._selected(value, tags, lambda member: member.read(value))
        return self._first(value, self._readers, lambda member: member.read(value))

    def write(self, value: Any) -> Any:
        found = self._exact.get(type(value))
        if found is not None:
            return found.write(value)
        if isinstance(value, dict):
            tags = [tag for tag in self._all_tags() if tag.is_written_as_map]
            if tags:
                return self._selected(value, tags, lambda member: member.write(value))
        # An object is also an object of the bases of its class.
        kind = type(value)
        exact = [member for member in self._members if member.unwrapped().cls is kind]
        return self._first(value, exact or self._members, lambda member: member.write(value))

    def read_key(self, key: str) -> Any:
        return self._first(key, self._readers, lambda member: member.read_key(key))

    def write_key(self, key: Any) -> Any:
        found = self._exact.get(type(key))
        return self._first(key, self._members if found is None else [found], lambda member: member.write_key(key))

    def _all_tags(self) -> list[Tag]:
        if self._tags is None:
            self._tags = list(_tags_of(self._members))
        return self._tags

    def _selected(self, value: dict[Any, Any], tags: list[Tag], convert: Callable[[Hint], Any]) -> Any:
        """Convert a map by the members that its tags do not exclude."""
        excluded: list[Hint] = []
        named: list[Hint] = []
        problems: Problems = []
        for tag in tags:
            selected, problem = tag.select(value)
            if selected is not None:
                named += selected
                excluded += [member for member in tag.members if member not in selected]
            if problem is not None:
                problems.append((None, problem))
        members = [member for member in self._members if member not in excluded]
        return self._first(value, members, convert, problems, named)

    def _first(
        self,
        value: Any,
        members: list[Hint],
        convert: Callable[[Hint], Any],
        problems: Problems | None = None,
        named: Sequence[Hint] = (),
    ) -> Any:
        problems = [] if problems is None else problems
        for member in members:
            try:
                return convert(member)
            except InvalidError as error:
                problems.append((member, error))
        # The problems of the class that the tag names explain the error.
        raise self._error(value, [found for found in problems if found[0] in named] or problems)

    def _error(self, value: Any, problems: Problems) -> InvalidError:
        # Members that expect another type of value do not explain the problem.
        mismatch = f"{describe(value)}, expected "
        near = [
            (member, error)
            for member, error in problems
            if not any(path == "" and problem.startswith(mismatch) for path, problem in error.problems)
            and not isinstance(member, Null)
        ]
        if len(near) == 1:
            return near[0][1]
        if not near:
            return self.mismatch(value)
        parts = []
        for member, error in near:
            path, problem = error.problems[0]
            part = f"`{path.removeprefix('.')}` " if path else ""
            parts.append(f"{f'{member.expected}: ' if member else ''}{part}{problem}")
        return invalid(f"fits none of its types ({'; '.join(parts)})")

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        branches: list[dict[str, Any]] = []
        tags = {id(tag.members[0]): tag for tag in self._all_tags() if tag.is_class_tag and len(tag.members) > 1}
        described = {id(member) for tag in tags.values() for member in tag.members}
        for member in self._members:
            if id(member) in tags:
                parts = [tags[id(member)].schema(schemas)]
            elif id(member) in described:
                continue
            else:
                schema = member.schema(schemas)
                parts = schema["anyOf"] if schema.keys() == {"anyOf"} else [schema]
            branches += [part for part in parts if part not in branches]
        return branches[0] if len(branches) == 1 else {"anyOf": branches}


def _flat(members: Iterable[Hint]) -> Iterator[Hint]:
    """Iterate over the members of a union and of the unions in it, such as those of an alias."""
    for member in members:
        if isinstance(member, Union):
            yield from member._members
        else:
            yield member


class Tag:
    """A field whose value selects one of several classes.

    Args:
        name: The name of the field.
        choices: The hint of the field in each class.
        is_required: Whether each map must have the field.
        is_class_tag: Whether the classes are structs with this tag, and not classes with a ``Literal`` field.
        is_written_as_map: Whether all classes are ``TypedDict``, so that values of the tool are maps, too.
    """

    def __init__(
        self,
        name: str,
        choices: list[tuple[Hint, Choice]],
        *,
        is_required: bool,
        is_class_tag: bool,
        is_written_as_map: bool,
    ) -> None:
        self._name = name
        self._choices = choices
        self._is_required = is_required
        self.is_class_tag = is_class_tag
        self.is_written_as_map = is_written_as_map
        self.members = [member for member, _ in choices]

    def select(self, value: dict[Any, Any]) -> tuple[list[Hint] | None, InvalidError | None]:
        """Return the members that accept the tag of a map (``None`` for all), and the problem of a wrong tag."""
        if self._name not in value:
            return ([], self._problem("is missing")) if self._is_required else (None, None)
        form = value[self._name]
        selected = [member for member, choice in self._choices if choice.accepts(form)]
        if not selected and len(self.members) == 1:
            return None, None
        return selected, None if selected else self._problem(f"is {show(form)}")

    def _problem(self, problem: str) -> InvalidError:
        forms = dict.fromkeys(form for _, choice in self._choices for form in choice.forms())
        return InvalidError([(f".{self._name}", f"{problem}, expected {choices(forms)}")])

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        """Return the schema of the members, as msgspec describes them."""
        branches: list[dict[str, Any]] = []
        mapping: dict[str, str] = {}
        for member, choice in self._choices:
            branches.append(member.schema(schemas))
            for form in choice.forms():
                mapping[str(form)] = branches[-1]["$ref"]
        return {"anyOf": branches, "discriminator": {"propertyName": self._name, "mapping": mapping}}


def _tags_of(members: list[Hint]) -> Iterator[Tag]:
    """Find the fields that select members: the tags of structs, and ``Literal`` fields of other classes."""
    by_tag: dict[str, list[tuple[Hint, Choice]]] = {}
    others: list[tuple[Hint, dict[str, tuple[Choice, bool]]]] = []
    for member in members:
        target = member.unwrapped()
        tag = target.class_tag()
        if tag is not None:
            by_tag.setdefault(tag[0], []).append((member, tag[1]))
        elif target.has_fields:
            others.append((member, target.choice_fields()))
    for name, tagged in by_tag.items():
        # The tag of a single struct may be missing, as for msgspec.
        yield Tag(name, tagged, is_required=len(tagged) > 1, is_class_tag=True, is_written_as_map=False)
    if len(others) < 2:
        return
    for name in others[0][1]:
        fields = [fields.get(name) for _, fields in others]
        found = [field for field in fields if field is not None]
        forms = [(type(form), form) for choice, _ in found for form in choice.forms()]
        if len(found) == len(others) and len(set(forms)) == len(forms):
            yield Tag(
                name,
                [(member, choice) for (member, _), (choice, _) in zip(others, found, strict=True)],
                is_required=all(is_required for _, is_required in found),
                is_class_tag=False,
                is_written_as_map=all(issubclass(member.unwrapped().cls or object, dict) for member, _ in others),
            )
            return


class Default(Hint):
    """The hint of a parameter whose default is ``None``, which callers may pass, too."""

    def __init__(self, inner: Hint) -> None:
        self._inner = inner
        self.expected = inner.expected
        members = inner.members() if isinstance(inner, Union) else [inner]
        # The host accepts null for this default in addition to the type.
        self.wire = members[0].wire if len(members) == 1 else inner.wire
        self.description = getattr(inner, "description", "")

    def read(self, value: Any) -> Any:
        return None if value is None else self._inner.read(value)

    def write(self, value: Any) -> Any:
        return None if value is None else self._inner.write(value)

    def schema(self, schemas: Schemas) -> dict[str, Any]:
        schema = self._inner.schema(schemas)
        null = {"type": "null"}
        branches = schema["anyOf"] if schema.keys() == {"anyOf"} else [schema]
        return schema if not schema or null in branches else {"anyOf": [*branches, null]}
