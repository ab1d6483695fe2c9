"""Actors that take turns with others on one GPU: which part of them is on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from actors.device import release_cached_memory

Part = Literal["policy", "judge", "critic"]  # of an actor: what it has on the GPU while it works
EVERYTHING: Literal["everything"] = "everything"


class Occupant(ABC):
    """Base of such an actor. What it loads is on the GPU, and stays there where GPUs are not shared."""

    on_gpu: Part | Literal["everything"] | None = EVERYTHING

    def occupy(self, part: Part | None) -> None:
        """Have `part` on the GPU and nothing else, or (None) nothing. Collective where the actor's methods are."""
        self.move(part)
        release_cached_memory()
        self.on_gpu = part

    @abstractmethod
    def move(self, part: Part | None) -> None:
        """Move weights and states so that `part` is all that is on the GPU."""

    def require_on_gpu(self, part: Part) -> None:
        """Raise RuntimeError when the actor is asked for work of a part that is not on the GPU."""
        if self.on_gpu not in (part, EVERYTHING):
            raise RuntimeError(f"asked for the {part}, and on the GPU is {self.on_gpu or 'nothing'}: not its turn")
