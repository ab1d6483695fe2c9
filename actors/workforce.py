"""The workers of a pool: started alike, and replaced when they die, a limited number of times."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import ray
from ray.actor import ActorHandle

from actors.group import START_TIMEOUT_S, ActorFailure
from actors.health import Health, Roster

log = logging.getLogger(__name__)

ANSWER_S = 1.0  # within which an actor that is up and idle answers


class Workforce:
    """Workers at work, and `stale` ones: started in place of dead ones, with the weights of the model's folder."""

    def __init__(
        self,
        what: str,
        start: Callable[[int], ActorHandle],
        names: Sequence[str],
        max_restarts: int,
        roster: Roster,
        started: Sequence[ActorHandle] = (),
    ) -> None:
        """`start` starts the one of that number without waiting for it; `what` they are, for messages.

        None is started where all of them are there already: `started`, by number.
        """
        self.what, self.start, self.max_restarts = what, start, max_restarts
        self.names, self.roster, self.restarts = names, roster, 0
        self.excused = 0  # deaths of which it is known that no worker is to blame
        roster.note(names, Health.STARTING)
        self.working = list(started) or [start(number) for number in range(len(names))]
        self.stale: list[ActorHandle] = []
        self._numbers = {worker: number for number, worker in enumerate(self.working)}

    def note(self, workers: Iterable[ActorHandle], health: Health, why: str = "") -> None:
        """In which state they are now."""
        self.roster.note([self.names[self._numbers[worker]] for worker in workers], health, why)

    def replace(self, worker: ActorHandle, error: Exception) -> bool:
        """Start another worker in place of a dead one, of the same number; False when that was done before, on the
        word of another call.

        Raises ActorFailure when that was one too many.
        """
        if worker not in self.working:
            return False
        self.working = [other for other in self.working if other != worker]
        self.note([worker], Health.DEAD)
        self.restarts += 1
        if self.restarts - self.excused > self.max_restarts:
            raise ActorFailure(
                f"{self.what}s died {self.restarts} times, more than max_worker_restarts allows; the last: {error}"
            ) from error
        log.warning("a %s died and is being replaced (%d so far): %s", self.what, self.restarts, error)
        number = self._numbers.pop(worker)
        self.stale.append(self.start(number))
        self._numbers[self.stale[-1]] = number
        self.note([self.stale[-1]], Health.STARTING)
        return True

    def admit_stale(self) -> None:
        """The stale workers are about to get the weights of the others, and work from then on."""
        self.note(self.stale, Health.STALE)
        self.working, self.stale = self.working + self.stale, []

    @property
    def everyone(self) -> list[ActorHandle]:
        """Those at work and the stale ones."""
        return self.working + self.stale

    @property
    def whole(self) -> list[ActorHandle] | None:
        """All of them by number, where every one is at work; None where one is missing or stale."""
        if self.stale or len(self.working) < len(self.names):
            return None
        return sorted(self.working, key=self._numbers.__getitem__)

    def admit_ready(self) -> None:
        """Admit the stale workers that are up. Where none is at work, wait for one of them."""
        if not self.stale:
            return
        ready = {cast(Any, worker).ready.remote(): worker for worker in self.stale}
        patience = ANSWER_S if self.working else START_TIMEOUT_S
        up, _ = ray.wait(list(ready), num_returns=len(ready) if self.working else 1, timeout=patience)
        admitted = [ready[ref] for ref in up]
        self.note(admitted, Health.STALE)
        self.working = self.working + admitted
        self.stale = [worker for worker in self.stale if worker not in admitted]

    def stop(self) -> None:
        """Kill all of them."""
        self.note(self.everyone, Health.RETIRED)
        for worker in self.everyone:
            ray.kill(worker)
