"""A model by its name: a folder or a hub id, the revision of the latter, and whether code that it ships may run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class ModelReference:
    """What every loader of configs, tokenizers and weights is given. Imports nothing heavy."""

    name: str  # a folder, or a hub id
    revision: str | None = None  # of a hub id; None: its newest
    trust_remote_code: bool = False

    @classmethod
    def of(cls, model: ModelLike) -> ModelReference:
        """The reference itself, or one to a folder or hub id whose code is not trusted."""
        return model if isinstance(model, ModelReference) else cls(str(model))

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


ModelLike: TypeAlias = ModelReference | Path | str  # what loaders take; a path or an id is not trusted
