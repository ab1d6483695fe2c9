"""All actor groups of one RLHF run: started side by side, stopped together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray

from actors.group import START_TIMEOUT_S, ActorGroup, get
from actors.learner import LearnerWorker
from actors.multipliers import MultiplierOwner
from actors.reference import ReferenceWorker
from actors.reservation import Reservation
from actors.rollout_pool import RolloutPool
from actors.signal import SignalModels, SignalWorker
from castor.config.rlhf import RLHF
from castor.data.rows.schemas import QARow
from castor.model_reference import ModelLike, ModelReference
from castor.run.actors import Actors
from trainers.rlhf.turns import Turns


class Groups:
    """The actor groups, ready to work. Use as a context manager: leaving it kills every actor."""

    def __init__(
        self,
        config: RLHF,
        *,
        actors: Mapping[str, Actors],
        reservation: Reservation,
        policy: ModelLike,
        signals: Mapping[str, SignalModels],
        limits: Mapping[str, float],
        template: str,
        seed: int,
        ptx_rows: Sequence[QARow] | None,
        multipliers_file: Path,
    ) -> None:
        """Start everything at once (imports dominate) and wait until all models are loaded.

        Args:
            config: the run.
            actors: what the stage starts, by name.
            reservation: where they go.
            policy: the policy's and the reference's weights.
            signals: what each signal's judge and critic are made from.
            limits: limit of each constraint, in the unit of its statistic.
            template: prompt format.
            seed: of this run.
            ptx_rows: demonstrations of the PTX loss, where it is on.
            multipliers_file: where the multipliers keep their state.

        """
        policy = ModelReference.of(policy)
        self.config, start = config, ActorGroup.start
        self.rollout = RolloutPool(policy, config.rollout, reservation, config.colocate, config.policy.lora)
        self.learner = start(actors["learner"], LearnerWorker, reservation)
        self.signals = {name: start(actors[f"signal-{name}"], SignalWorker, reservation) for name in config.signals}
        self.reference: ActorGroup | None = None
        if "reference" in actors:
            self.reference = start(actors["reference"], ReferenceWorker, reservation, name="the reference policy")
        self.multipliers: Any = None
        if "MultiplierOwner" in actors:
            owner = ray.remote(MultiplierOwner).options(num_cpus=0, max_restarts=-1, max_task_retries=3)
            self.multipliers = owner.remote(config, dict(limits), multipliers_file)
        for group in (self.learner, *self.signals.values()):
            group.join(config.learner.timeout_s)
        loads: list[tuple[ActorGroup, tuple[Any, ...]]] = [
            (self.learner, (policy, config, seed, template, ray.put(ptx_rows))),
            *((group, (name, signals[name], config, seed, limits.get(name))) for name, group in self.signals.items()),
        ]
        if self.reference is not None:
            loads.append((self.reference, (policy, config)))
        self._load(loads)
        self.turns = Turns(self)

    def _load(self, loads: Sequence[tuple[ActorGroup, tuple[Any, ...]]]) -> None:
        """Have every group load its models: side by side, or, on GPUs that they share, one after the other."""
        if not self.config.colocate:
            loading = [(group, group.call("load", *arguments)) for group, arguments in loads]
            for group, refs in loading:
                get(refs, START_TIMEOUT_S, f"{group.name} (loading its model)")
            self.rollout.wait_ready()
            return
        self.rollout.sleep(keep_weights=True)
        for group, arguments in loads:
            get(group.call("load", *arguments), START_TIMEOUT_S, f"{group.name} (loading its model)")
            get(group.call("occupy", None), START_TIMEOUT_S, f"{group.name} (leaving the GPU)")
        self.rollout.wake()

    def reference_logprobs(self, number: int, experience: Any) -> Any:
        """A ref to the reference log-probabilities of chunk `number`, a ref to experience.

        A policy with an adapter is its own reference: up to ZeRO-2 the learner's ranks take turns, under ZeRO-3, where
        a forward pass is a collective, all of them share the chunk.
        """
        if self.reference is not None:
            return round_robin(self.reference.handles, number).logprobs.remote(experience)
        if self.config.learner.engine.zero_stage == 3:
            return self.learner.call("reference_logprobs", experience)[0]
        return round_robin(self.learner.handles, number).reference_logprobs.remote(experience)

    def nodes(self) -> dict[str, str]:
        """Which node the first actor of each group runs on."""
        first = {group.name: group.handles[0] for group in (self.learner, *self.signals.values())}
        first["rollout"] = self.rollout.workers[0]
        return {name: get(actor.node.remote(), START_TIMEOUT_S, name) for name, actor in first.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rollout.stop()
        for group in (self.learner, *self.signals.values(), *([self.reference] if self.reference else [])):
            group.stop()
        if self.multipliers is not None:
            ray.kill(self.multipliers)


def round_robin(handles: Sequence[Any], number: int) -> Any:
    """The actor that works on chunk `number`: they take turns."""
    return handles[number % len(handles)]
