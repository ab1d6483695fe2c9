"""How far a job that owns its own loop has come, for whoever draws the progress bar."""

from __future__ import annotations

from dataclasses import dataclass, field

import ray


@dataclass(frozen=True)
class Progress:
    """`done` of `total` steps, and the newest metrics."""

    done: int = 0
    total: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Holds the newest `Progress`; anyone may read it at any time."""

    def __init__(self) -> None:
        self.progress = Progress()

    def post(self, progress: Progress) -> None:
        """Replace it."""
        self.progress = progress

    def read(self) -> Progress:
        """The newest."""
        return self.progress
