"""The RLHF loop. PPO, PPO-Lag and their kin differ in the signals and the multiplier rule the config names, not here.

The driver moves object refs, prompts and scalars; it never holds a response.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actors.group import get
from actors.multipliers import Coefficients
from castor.config.rlhf import RLHF
from trainers.clock import Clock
from trainers.rlhf.groups import Groups
from trainers.rlhf.producer import Producer
from trainers.rlhf.traces import trace


@dataclass(frozen=True)
class StepResult:
    """Scalars of one step. `coefficients` are those its loss used."""

    step: int
    metrics: dict[str, float]
    coefficients: Coefficients | None


def train(
    config: RLHF,
    groups: Groups,
    producer: Producer,
    on_step: Callable[[StepResult], None],
    keep: Callable[[int], None] = lambda step: None,
) -> None:
    """Run the steps from the producer's next one to `config.steps`; all groups hold what the step before it left.

    `keep` is called when a step has updated everything that has a state: here a checkpoint may be made.
    """
    first = producer.next_step
    for step in range(first, config.steps + 1):
        trace(groups, step + 1 - first)
        clock = Clock(step)
        batch = producer.take(step)
        clock.lap("rollout_s")

        coefficients = None
        if groups.multipliers is not None:  # λ and an adapted β first, then the policy
            costs = {name: batch.scores[name] for name in config.constraints}
            kl = groups.learner.handles[0].measure_kl.remote(batch) if config.advantage.kl_target else None
            coefficients = groups.multipliers.update.remote(step, costs, kl)
        groups.turns.to("critics")
        advantages = {name: group.call("advantages", batch, coefficients)[0] for name, group in groups.signals.items()}
        made = advantages.values()
        fitting = {name: group.call("train_critic", step, *made) for name, group in groups.signals.items()}
        groups.turns.to("learner")
        learning = groups.learner.call("step", step, batch, advantages, coefficients)
        timeout = config.learner.timeout_s
        metrics = producer.get(learning, timeout, "the learner")[0]
        for name, refs in fitting.items():
            fitted = producer.get(refs, timeout, f"signal {name}")[0]
            metrics |= {f"{name}/{key}": value for key, value in fitted.items()}
        clock.lap("learn_s")

        if groups.turns.shared:  # before those who hold the state leave the GPUs; elsewhere while the engines sample
            keep(step)
            clock.lap("checkpoint_s")
        producer.publish(step)
        clock.lap("transfer_s")
        if not groups.turns.shared:
            keep(step)
            clock.lap("checkpoint_s")
        clock.end()
        applied = None if coefficients is None else get(coefficients, timeout, "the multiplier owner")
        metrics |= (applied.metrics() if applied else {}) | clock.seconds | producer.metrics() | groups.turns.metrics()
        on_step(StepResult(step, metrics, applied))
    trace(groups, config.steps + 2 - first, last=True)
