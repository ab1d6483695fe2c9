"""What of a config differs from the defaults, and how a value is written in one line."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from castor.config.base import Section

REQUIRED = "(none)"
GIVEN = "{}"


@dataclass(frozen=True)
class Difference:
    """An option that does not have its default."""

    key: str  # dotted, with the names of the config
    value: str
    default: str


def differences(section: Section, place: tuple[str, ...] = ()) -> Iterator[Difference]:
    """Options of `section`, and of sections within, whose value is not what it would be if the key were left out.

    A section that is there although the default is none, and has nothing of its own to tell, is told as `{}`.
    """
    for name, field in type(section).model_fields.items():
        yield from _told(getattr(section, name), default_of(field), (*place, name))


def _told(value: Any, default: Any, place: tuple[str, ...]) -> Iterator[Difference]:
    if value == default:
        return
    if isinstance(value, Section):
        within = list(differences(value, place))
        if not within and not isinstance(default, Section):
            within = [Difference(".".join(place), GIVEN, written(default))]
        yield from within
    elif isinstance(value, dict) and value and all(isinstance(each, Section) for each in value.values()):
        for name, each in value.items():
            yield from _told(each, None, (*place, str(name)))
    else:
        yield Difference(".".join(place), written(value), written(default))


class _Required:
    """In place of a default that there is not."""


def default_of(field: FieldInfo) -> Any:
    """The default of an option; of one without, something that equals no value and is written `REQUIRED`."""
    return _Required if field.is_required() else field.get_default(call_default_factory=True)


def written(value: Any) -> str:
    """A value as a config would have it, in one line; of a section only what differs from its defaults."""
    if value is _Required:
        return REQUIRED
    if isinstance(value, Section):
        own = {name: getattr(value, name) for name, field in type(value).model_fields.items()
               if getattr(value, name) != default_of(field)}  # fmt: skip
        return written(own)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(written(each) for each in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if type(value) is float:
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)
