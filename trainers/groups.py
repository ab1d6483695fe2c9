"""All actor groups of one RLHF run: started side by side, stopped together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import ray

from actors.group import START_TIMEOUT_S, ActorGroup, actor_options, get
from actors.learner import LearnerWorker
from actors.multipliers import MultiplierOwner
from actors.reference import ReferenceWorker
from actors.rollout_pool import RolloutPool
from actors.signal import SignalModels, SignalWorker
from castor.config.rlhf import RLHF
from castor.data.rows import QARow


class Groups:
    """The actor groups, ready to work. Use as a context manager: leaving it kills every actor."""

    def __init__(
        self,
        config: RLHF,
        *,
        policy: str,
        signals: Mapping[str, SignalModels],
        thresholds: Mapping[str, float],
        template: str,
        seed: int,
        ptx_rows: Sequence[QARow] | None,
        state_dir: Path,
    ) -> None:
        """Start everything at once (imports dominate) and wait until all models are loaded.

        Args:
            config: the run.
            policy: folder or hub id of the policy's and the reference's weights.
            signals: what each signal's judge and critic are made from.
            thresholds: limit of each constraint, in the unit of its statistic.
            template: prompt format.
            seed: of this run.
            ptx_rows: demonstrations of the PTX loss, where it is on.
            state_dir: where the multipliers keep their state.

        """
        trust = config.policy.trust_remote_code
        self.rollout = RolloutPool(policy, config.rollout, template, trust)
        engine, reference = config.learner.engine, config.policy.reference
        options = [actor_options(reference.resources, "reference") for _ in range(reference.ranks)]
        arguments = (policy, engine, config.rollout.temperature, reference.resources.threads, trust)
        worker = cast(Any, ReferenceWorker)
        self.reference = ActorGroup(
            "the reference policy", [worker.options(**option).remote(*arguments) for option in options]
        )
        learner = config.learner
        self.learner = ActorGroup.start("learner", LearnerWorker, learner.ranks, learner.resources)
        self.signals = {
            name: ActorGroup.start(f"signal-{name}", SignalWorker, signal.ranks, signal.resources)
            for name, signal in config.signals.items()
        }
        self.multipliers: Any = None
        if config.has_owner:
            owner = ray.remote(MultiplierOwner).options(num_cpus=0, max_restarts=-1, max_task_retries=3)
            self.multipliers = owner.remote(config, dict(thresholds), state_dir / "multipliers.json")
        for group in (self.learner, *self.signals.values()):
            group.join(learner.timeout_s)
        rows_ref = ray.put(ptx_rows)
        loading = {self.learner.name: self.learner.call("load", policy, config, seed, template, rows_ref)}
        for name, group in self.signals.items():
            loading[group.name] = group.call("load", name, signals[name], config, seed, thresholds.get(name))
        loading[self.reference.name] = self.reference.call("ready")
        for name, refs in loading.items():
            get(refs, START_TIMEOUT_S, f"{name} (loading its model)")
        self.rollout.wait_ready()

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
        for group in (self.reference, self.learner, *self.signals.values()):
            group.stop()
        if self.multipliers is not None:
            ray.kill(self.multipliers)
