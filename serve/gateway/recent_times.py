"""How long requests took lately, from which the next free place can be guessed."""

from __future__ import annotations

from collections import deque

REMEMBERED = 64  # requests


class RecentTimes:
    """The mean of the last times, in seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=REMEMBERED)

    def add(self, seconds: float) -> None:
        """One more request took this long."""
        self._times.append(seconds)

    def until_free(self, ahead: int, places: int) -> float:
        """Seconds until a place is free for one who comes after `ahead` others, when `places` are all taken.

        With so many at work, one ends every mean / places seconds on average. 0 while nothing is known.
        """
        if not self._times:
            return 0.0
        return sum(self._times) / len(self._times) * (ahead + 1) / places
