"""What a section of the bench says: ratios with what is wanted of them, and figures beside them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ratio:
    """One number per repetition: how two ways of doing the same work compare, taken in turns on the same cores."""

    name: str  # what is divided by what, in words
    values: tuple[float, ...]
    at_least: float | None = None
    at_most: float | None = None
    bounded_by: str = ""  # what keeps it from being better

    @property
    def median(self) -> float:
        """The middle one: a neighbour on the same machine spoils single repetitions."""
        return statistics.median(self.values)

    @property
    def holds(self) -> bool | None:
        """Whether the median is what is wanted; None where nothing is."""
        if self.at_least is None and self.at_most is None:
            return None
        low = self.at_least is None or self.median >= self.at_least
        return low and (self.at_most is None or self.median <= self.at_most)


@dataclass(frozen=True)
class Section:
    """A part of the bench: `measure(smoke)` of the module of that name returns one."""

    name: str
    ratios: tuple[Ratio, ...]
    figures: dict[str, float] = field(default_factory=dict)  # name with unit ("tokens/s") -> value, of this machine


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of `work`."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(works: dict[str, Callable[[], object]], repetitions: int) -> dict[str, tuple[float, ...]]:
    """Seconds of each repetition of each work, one after the other: a drifting machine hurts all alike.

    Each runs once before, untimed.
    """
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repetitions):
        names = list(works) if turn % 2 == 0 else list(reversed(works))
        for name in names:
            times[name].append(seconds(works[name]))
    return {name: tuple(values) for name, values in times.items()}


def paired(over: tuple[float, ...], under: tuple[float, ...]) -> tuple[float, ...]:
    """`over / under`, repetition by repetition."""
    return tuple(a / b for a, b in zip(over, under, strict=True))
