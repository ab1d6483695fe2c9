"""The RLHF loop. PPO, PPO-Lag and their kin differ in the signals and the multiplier rule the config names, not here.

The driver moves object refs, prompts and scalars; it never holds a response.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actors.group import get
from actors.multipliers import Coefficients
from castor.config.rlhf import RLHF
from castor.data.tokens.prompt_stream import PromptStream
from trainers.rlhf.clock import Clock
from trainers.rlhf.groups import Groups
from trainers.rlhf.producer import Producer


@dataclass(frozen=True)
class StepResult:
    """Scalars of one step. `coefficients` are those its loss used."""

    step: int
    metrics: dict[str, float]
    coefficients: Coefficients | None


def train(
    config: RLHF, groups: Groups, prompts: PromptStream, seed: int, start: int, on_step: Callable[[StepResult], None]
) -> None:
    """Run the steps `start` .. `config.steps`; all groups are loaded and hold the weights of version start - 1."""
    producer = Producer(config, groups, prompts, seed, start)
    for step in range(start, config.steps + 1):
        clock = Clock()
        batch = producer.take(step)
        clock.lap("rollout_s")

        coefficients = None
        if groups.multipliers is not None:  # λ and an adapted β first, then the policy
            costs = {name: batch.scores[name] for name in config.constraints}
            kl = groups.learner.handles[0].measure_kl.remote(batch) if config.advantage.kl_target else None
            coefficients = groups.multipliers.update.remote(step, costs, kl)
        groups.turns.to("critics")
        advantages = {name: group.call("advantages", batch, coefficients)[0] for name, group in groups.signals.items()}
        fitting = {name: group.call("train_critic", step) for name, group in groups.signals.items()}
        groups.turns.to("learner")
        learning = groups.learner.call("step", step, batch, advantages, coefficients)
        timeout = config.learner.timeout_s
        metrics = producer.get(learning, timeout, "the learner")[0]
        for name, refs in fitting.items():
            fitted = producer.get(refs, timeout, f"signal {name}")[0]
            metrics |= {f"{name}/{key}": value for key, value in fitted.items()}
        clock.lap("learn_s")

        producer.publish(step)
        clock.lap("transfer_s")
        applied = None if coefficients is None else get(coefficients, timeout, "the multiplier owner")
        metrics |= (applied.metrics() if applied else {}) | clock.seconds | producer.metrics() | groups.turns.metrics()
        on_step(StepResult(step, metrics, applied))
