"""The weights a pool's workers were sent, and what they still have to prove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors.group import START_TIMEOUT_S, get, too_late
from actors.rollout import WEIGHTS
from engines.weights.base import TransferError, WeightUpdate


@dataclass(frozen=True)
class Owed:
    """The proof a worker owes."""

    worker: ActorHandle
    update: WeightUpdate
    sent: Any  # a ref to the update with its digest, where that was not known when the update was announced; or None


class WeightProofs:
    """Sends updates and checks the answers. `pending` maps refs to proofs to what they have to prove."""

    def __init__(self) -> None:
        self.update: WeightUpdate | None = None  # what the workers were sent; None: the weights of the model's folder
        self.version = 0  # a job dealt now is sampled with this version or a later one
        self.pending: dict[Any, Owed] = {}
        self.lost: str | None = None  # why a worker that lives has not got the last update

    def send(self, workers: Sequence[ActorHandle], update: WeightUpdate, overtake: bool, sent: Any = None) -> None:
        """Send an update to all workers: in turn with their other calls, or, to `overtake`, in the midst of them.

        In turn, whatever a worker is given from now on is sampled with the update. Overtaking, the update counts once
        all have proven it. `sent` is a ref to what its sender says of an update that is only announced.
        """
        self.update, self.lost = update, None
        for worker in workers:
            method: Any = worker.load_weights
            if overtake:
                method = method.options(concurrency_group=WEIGHTS)
            self.pending[method.remote(update)] = Owed(worker, update, sent)
        if not overtake:
            self.version = update.version

    def check(self, proof: Any) -> None:
        """Wait for a proof; `lost` is set when the weights did not get through to its worker.

        Raises RuntimeError when it is of other weights, RayActorError when its worker has died, Stalled when it is
        stuck.
        """
        owed = self.pending.pop(proof)
        try:
            held = ray.get(proof, timeout=START_TIMEOUT_S)
        except GetTimeoutError:
            raise too_late(START_TIMEOUT_S, "a rollout worker (receiving weights)") from None
        except TransferError as error:
            self.lost = str(error)
            return
        update = owed.update
        if owed.sent is not None:
            update = get(owed.sent, START_TIMEOUT_S, "the learner (sending weights)")
        try:
            update.check(held)
        except RuntimeError:
            self.pending.clear()  # of an update that is void
            raise
        self._count()

    @staticmethod
    def death(proof: Any) -> RayActorError | None:
        """Why a proof that is there will never be one: its worker has died. Whatever else it is, `check` says."""
        try:
            ray.get(proof, timeout=START_TIMEOUT_S)
        except RayActorError as error:
            return error
        except RayTaskError:
            pass
        return None

    def due(self, worker: ActorHandle, version: int) -> list[Any]:
        """The proofs a worker owes that has sampled with `version`: it has loaded these updates, so they are coming."""
        owed = self.pending.items()
        return [proof for proof, each in owed if each.worker == worker and each.update.version <= version]

    def forget(self, worker: ActorHandle) -> None:
        """A worker has died and proves nothing any more."""
        self.pending = {proof: owed for proof, owed in self.pending.items() if owed.worker != worker}
        self._count()

    def _count(self) -> None:
        if self.update is not None and not self.pending and self.lost is None:
            self.version = self.update.version
