"""The health of the actors of a run: each is in one of few states, and every change is a line in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from enum import StrEnum

log = logging.getLogger(__name__)


class Health(StrEnum):
    """The states."""

    STARTING = "starting"  # its process is asked for, or comes up, or loads its model
    STALE = "stale"  # up, and not yet known to hold the weights that the others hold
    HEALTHY = "healthy"  # at work
    SUSPECT = "suspect"  # it did not answer in time
    DEAD = "dead"
    RETIRED = "retired"  # ended because it is not needed any more


_ENDS = {Health.DEAD, Health.RETIRED}
NEXT = {
    Health.STARTING: {Health.STALE, Health.HEALTHY, Health.SUSPECT, *_ENDS},
    Health.STALE: {Health.HEALTHY, Health.SUSPECT, *_ENDS},
    Health.HEALTHY: {Health.STALE, Health.SUSPECT, *_ENDS},
    Health.SUSPECT: {Health.HEALTHY, *_ENDS},
    Health.DEAD: {Health.STARTING, Health.RETIRED},  # another process takes its name, or none
    Health.RETIRED: {Health.STARTING},
}
"""What can come after each state."""


class Roster:
    """The actors by their names, as `Actors.rank_names` gives them."""

    def __init__(self) -> None:
        self.health: dict[str, Health] = {}
        self.deaths = 0

    def note(self, names: str | Iterable[str], health: Health, why: str = "") -> None:
        """They are in this state now. Raises ValueError when that cannot come after the one they were in."""
        for name in [names] if isinstance(names, str) else names:
            before = self.health.get(name, Health.RETIRED)
            if health == before:
                continue
            if health not in NEXT[before]:
                raise ValueError(f"{name} is {before}, and cannot become {health}")
            level = logging.WARNING if health in (Health.SUSPECT, Health.DEAD) else logging.INFO
            log.log(level, "%s: %s -> %s%s", name, before, health, why and f": {why}")
            self.deaths += health == Health.DEAD
            self.health[name] = health

    def metrics(self) -> dict[str, float]:
        """actors/STATE: how many are in each state; actors/deaths: how many have died so far."""
        counts = {f"actors/{state}": 0.0 for state in Health}
        for state in self.health.values():
            counts[f"actors/{state}"] += 1
        return {**counts, "actors/deaths": float(self.deaths)}
