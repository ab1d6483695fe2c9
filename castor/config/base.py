"""The base of every config section, and the types of options that name files and folders."""

import difflib
from collections.abc import Set
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from castor.io.errors import CastorError
from castor.io.files import local_path


def _expanded(value: object) -> object:
    if not isinstance(value, str | Path | int | float):
        return value
    try:
        return local_path(str(value))
    except CastorError as error:
        raise ValueError(str(error)) from None


def _expanded_unless_a_name(value: str) -> str:
    return str(_expanded(value)) if value.startswith("~") else value


LocalPath = Annotated[Path, BeforeValidator(_expanded)]
"""A file or folder; `~` is the home folder."""
FolderOrName = Annotated[str, AfterValidator(_expanded_unless_a_name)]
"""A folder, where `~` is the home folder, or another name such as a hub id."""


class Section(BaseModel):
    """A config section. Immutable after validation; every field is documented with `Field(description=...)`.

    An unknown key is an error that names the nearest known one. A text option takes a number as it is written.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )

    HOW: ClassVar[frozenset[str]] = frozenset()
    """Keys that say how something is computed and not what: changing one of them changes a result by rounding only."""

    def recipe(self) -> dict[str, Any]:
        """All that decides a result, as JSON values; what is in `HOW`, here and in sections within, is left out."""
        return {name: _recipe(getattr(self, name)) for name in type(self).model_fields if name not in self.HOW}

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.5)
                    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown key {key!r}; {hint}")
        return values


def _recipe(value: Any) -> Any:
    if isinstance(value, Section):
        return value.recipe()
    if isinstance(value, dict):
        return {str(key): _recipe(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_recipe(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def reject_foreign_keys(section: Section, key: str, choice: str, own: Set[str]) -> None:
    """Raise ValueError when an option that only another `key` reads stands at something else than its default."""
    for name, field in type(section).model_fields.items():
        if name not in own and name != key and getattr(section, name) != field.get_default(call_default_factory=True):
            raise ValueError(f"{key} {choice} has no {name}: remove it (its own keys: {', '.join(sorted(own))})")
