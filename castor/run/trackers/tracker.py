"""What every tracker does, and what a table of samples shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

SHOWN_CHARACTERS = 500  # of a text in a table


class Tracker(Protocol):
    """Keeps the figures of one run somewhere. A series is a stage or an RLHF run, with steps of its own."""

    def open(self) -> bool:
        """Begin, or go on with what was begun for the run folder; False: there is nothing to be done.

        Raises CastorError where its package or an account is missing.
        """

    def log(self, series: str, step: int, metrics: dict[str, float]) -> None:
        """Log `metrics` of `series` at `step`."""

    def samples(self, series: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log some of `rows` as a table of `series`; texts are cut."""

    def start_over(self) -> None:
        """What comes is another run. To be called before `open`."""

    def finish(self) -> None:
        """Flush and close what is open."""


def samples_of(rows: Sequence[Sequence[Any]], count: int) -> list[list[Any]]:
    """The first `count` rows, their texts cut to `SHOWN_CHARACTERS`."""
    return [[cell[:SHOWN_CHARACTERS] if isinstance(cell, str) else cell for cell in row] for row in rows[:count]]
