"""The base of every config section: unknown keys are errors that name the nearest known key."""

import difflib
from collections.abc import Set
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A config section. Immutable after validation; every field is documented with `Field(description=...)`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

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
