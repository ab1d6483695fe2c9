"""From one stage to the next: rollout workers that the next one would start just alike stay up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, remove_placement_group

from actors.group import has_died

if TYPE_CHECKING:
    from castor.run.actors import Actors
    from castor.run.bundles import Bundle

ANSWER_S = 5.0  # within which a worker that is up and idle answers


@dataclass(frozen=True)
class Wanted:
    """What a stage will ask for: its rollout workers, if any, and how all of its actors lie on GPUs."""

    workers: Actors | None
    bundles: Sequence[Bundle]


class Handover:
    """Holds rollout workers between two stages that want the same ones and the same bundles, and with them the bundles.

    The bundles, since a stage has all of its GPUs or none. Nothing else stays: DeepSpeed does not give back what its
    engines hold, so a process that trains ends with its stage.
    """

    def __init__(self) -> None:
        self.stays = False  # whether the stage that is at work may leave its workers
        self._wanted: Wanted | None = None  # of the stage that they are left to
        self._workers: Sequence[ActorHandle] = ()
        self._started_with: Any = None
        self.group: PlacementGroup | None = None  # of the bundles

    def begin(self, now: Wanted, following: Wanted | None) -> None:
        """A stage begins, and another one comes after it, if any. What was left to a stage of other wants ends."""
        if now != self._wanted:
            self.end()
        self._wanted, self.stays = following, now.workers is not None and now == following

    def leave(self, workers: Sequence[ActorHandle], started_with: Any, group: PlacementGroup | None) -> None:
        """The stage is done with its workers, which are all up and idle; they were started with these arguments."""
        self._workers, self._started_with, self.group = workers, started_with, group

    def take(self, started_with: Any) -> Sequence[ActorHandle]:
        """The workers that were left, if they are alive and would be started with the same arguments. Others end."""
        workers, self._workers = self._workers, ()
        if not workers:
            return ()
        answers: list[Any] = [worker.__ray_ready__.remote() for worker in workers]
        up, _ = ray.wait(answers, num_returns=len(answers), timeout=ANSWER_S)
        if started_with == self._started_with and len(up) == len(answers) and not any(map(has_died, up)):
            return workers
        _end(workers)
        return ()

    def end(self) -> None:
        """Nobody takes what was left."""
        _end(self._workers)
        if self.group is not None:
            remove_placement_group(self.group)
        self._workers, self.group = (), None


def _end(workers: Sequence[ActorHandle]) -> None:
    for worker in workers:
        ray.kill(worker)
