"""How far a job that owns its own loop has come, for whoever draws the progress bar."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray

from actors.startup import Start


@dataclass(frozen=True)
class Progress:
    """`done` of `total` steps, and the metrics of the newest."""

    done: int = 0
    total: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Between a job's workers, which may be restarted, and the driver."""

    def __init__(self) -> None:
        self._dealt: Any = None
        self._new: list[Progress] = []
        self._starts: list[Start] = []
        self._refusal: Exception | None = None
        self._stop = False
        self._stopped: int | None = None
        self._made = self._over = False

    def deal(self, rows: Any) -> None:
        """What the workers wait for has been read."""
        self._dealt = rows

    def dealt(self) -> Any:
        """It, once it is there; None before."""
        return self._dealt

    def post(self, progress: Progress) -> None:
        """Add an entry."""
        self._new.append(progress)

    def note_starts(self, starts: list[Start]) -> None:
        """All ranks are ready; what their starts took."""
        self._starts = starts

    def news(self) -> tuple[list[Start], list[Progress], bool]:
        """Since the last call: the newest starts that were noted, and all entries in order; and whether it is over.

        Together, so that nobody learns of a step before the start that was noted before it.
        """
        news, self._starts, self._new = (self._starts, self._new, self._over), [], []
        return news

    def note_made(self) -> None:
        """What the job was to make is in place: its workers have only to end."""
        self._made = True

    def made(self) -> bool:
        """Whether it is."""
        return self._made

    def note_end(self) -> None:
        """All workers have ended, maybe to be started again. Once everything is made, the job is over."""
        self._over = self._made

    def stop(self) -> None:
        """The workers are to end after the step they are at."""
        self._stop = True

    def stopping(self) -> bool:
        """Whether they are."""
        return self._stop

    def note_stop(self, step: int) -> None:
        """They have, and a checkpoint of this step is there."""
        self._stopped = step

    def stopped(self) -> int | None:
        """The step after which they have ended early; None: they have not."""
        return self._stopped

    def refuse(self, error: Exception) -> None:
        """Note why the job cannot be done, however often its workers are started again; the first reason counts."""
        self._refusal = self._refusal or error

    def refusal(self) -> Exception | None:
        """Why the job cannot be done; None as far as is known."""
        return self._refusal
