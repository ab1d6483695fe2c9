"""Every option by its dotted name: its type, its default, what it may be and what it means, read off the sections."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from castor.config.assess import Assess
from castor.config.base import Section
from castor.config.differences import default_of, written
from castor.config.pipeline import Config
from castor.config.serve import Serve

NAME = "NAME"
"""Stands in a path for a name of the user's choice."""

ROOTS: dict[str, type[Section]] = {"castor pipeline": Config, "castor serve": Serve, "castor assess": Assess}
"""Whose configs there are: the command that reads one, and its outermost section."""

Parts = tuple[str, ...]

_WORDS: dict[Any, str] = {
    int: "whole number", float: "number", str: "text", bool: "true or false", NoneType: "null", Any: "anything"
}  # fmt: skip
_SIGNS = ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))


@dataclass(frozen=True)
class Key:
    """One option."""

    path: Parts  # parts of the dotted name, NAME for a name of the user's choice
    kind: str  # its type, in words
    allowed: str  # its range, or the values it may have; empty: whatever its type has
    default: str
    meaning: str
    sections: tuple[type[Section], ...]  # of the keys below: several where `kind` tells them apart
    named: bool  # whether the keys below lie under names of the user's choice
    where: type[Section]  # the section that has it

    @property
    def dotted(self) -> str:
        """Its name in a config and on the command line."""
        return ".".join(self.path)

    @property
    def below(self) -> Parts:
        """The path of what lies in it."""
        return (*self.path, NAME) if self.named else self.path


def keys(root: type[Section]) -> Iterator[Key]:
    """All options of a config whose outermost section is `root`, each followed by those below it."""
    yield from _keys(root, (), None, "")


def _keys(section: type[Section], above: Parts, absent: Section | None, owner: str) -> Iterator[Key]:
    """The options of `section` at the path `above`. `absent` is what holds if `owner`, a key above, is left out."""
    for name, field in section.model_fields.items():
        path, default = (*above, name), default_of(field)
        holds = default if absent is None else getattr(absent, name)
        sections, named = _sections(field.annotation)
        text = written(default)
        if holds != default and not isinstance(holds, Section):
            text = f"{written(holds)}; {text} where {owner} is given"
        key = Key(
            path, _kind(field.annotation), _allowed(field), text, field.description or "", sections, named, section
        )
        yield key
        below = holds if isinstance(holds, Section) and not named else None
        whose = key.dotted if absent is None else owner
        for each in sections:
            yield from _keys(each, key.below, below if isinstance(below, each) else None, whose)


def _sections(annotation: Any) -> tuple[tuple[type[Section], ...], bool]:
    """The sections an option may hold, and whether they lie under names."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,), False
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _sections(parts[0])
    if origin is dict:
        return _sections(parts[1])[0], True
    found: tuple[type[Section], ...] = ()
    named = False
    if origin in (Union, UnionType, list):
        for part in parts:
            sections, within = _sections(part)
            found, named = found + sections, named or within
    return found, named


def _kind(annotation: Any) -> str:
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0])
    if origin is Literal:
        return "choice"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_kind(part) for part in parts))
    if origin is list:
        return f"list of {_many(parts[0])}"
    if origin is tuple:
        return f"{len(parts)} {_many(parts[0])}"
    if origin is dict:
        return f"{_many(parts[1])} by {'name' if parts[0] is str else 'number'}"
    return "section" if issubclass(annotation, Section) else "path"


def _many(annotation: Any) -> str:
    if get_origin(annotation) is dict:
        return "mappings"
    return " or ".join(f"{word}s" for word in _kind(annotation).split(" or "))


def _allowed(field: FieldInfo) -> str:
    parts = [", ".join(dict.fromkeys(_choices(field.annotation)))]
    bounds = [f"{sign} {written(getattr(bound, name))}" for bound in field.metadata
              for kind, name, sign in _SIGNS if isinstance(bound, kind)]  # fmt: skip
    parts.append(" and ".join(bounds))
    if any(isinstance(bound, MinLen) for bound in field.metadata):
        parts.append("not empty")
    parts += [f"like {bound.pattern}" for bound in field.metadata if getattr(bound, "pattern", None)]
    return "; ".join(part for part in parts if part)


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [written(value) for value in get_args(annotation)]
    if isinstance(annotation, type):
        return []
    return [choice for part in get_args(annotation) for choice in _choices(part)]
