"""The weights a pool's workers were sent, and what they still have to prove."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.group import START_TIMEOUT_S
from actors.rollout import WEIGHTS
from engines.weights.base import WeightUpdate


class WeightProofs:
    """Sends updates and checks the answers. `pending` maps refs to proofs to the worker and the update they are of."""

    def __init__(self) -> None:
        self.update: WeightUpdate | None = None  # what the workers were sent; None: the weights of the model's folder
        self.version = 0  # a job dealt now is sampled with this version or a later one
        self.pending: dict[Any, tuple[ActorHandle, WeightUpdate]] = {}

    def send(self, workers: Sequence[ActorHandle], update: WeightUpdate, overtake: bool) -> None:
        """Send an update to all workers: in turn with their other calls, or, to `overtake`, in the midst of them.

        In turn, whatever a worker is given from now on is sampled with the update. Overtaking, the update counts once
        all have proven it.
        """
        self.update = update
        for worker in workers:
            method: Any = worker.load_weights
            if overtake:
                method = method.options(concurrency_group=WEIGHTS)
            self.pending[method.remote(update)] = worker, update
        if not overtake:
            self.version = update.version

    def check(self, proof: Any) -> None:
        """Wait for a proof. Raises RuntimeError when it is of other weights; RayActorError when its worker has died."""
        _, update = self.pending.pop(proof)
        held = ray.get(proof, timeout=START_TIMEOUT_S)
        try:
            update.check(held)
        except RuntimeError:
            self.pending.clear()  # of an update that is void
            raise
        self._count()

    def due(self, worker: ActorHandle, version: int) -> list[Any]:
        """The proofs a worker owes that has sampled with `version`: it has loaded these updates, so they are coming."""
        return [proof for proof, (of, update) in self.pending.items() if of == worker and update.version <= version]

    def forget(self, worker: ActorHandle) -> None:
        """A worker has died and proves nothing any more."""
        self.pending = {proof: pair for proof, pair in self.pending.items() if pair[0] != worker}
        self._count()

    def _count(self) -> None:
        if self.update is not None and not self.pending:
            self.version = self.update.version
