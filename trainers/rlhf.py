"""The RLHF loop. PPO, PPO-Lag and their kin differ in the signals and the multiplier rule the config names, not here.

The driver moves object refs and scalars; it never holds a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from actors.batch import StepBatch
from actors.group import get
from actors.multipliers import Prices
from actors.rollout import PromptRequest
from actors.rollout_pool import request_seed
from castor.clock import Clock
from castor.config.rlhf import RLHF
from castor.data.prompt_stream import PromptStream
from trainers.groups import Groups, turn


@dataclass(frozen=True)
class StepResult:
    """Scalars of one step. `prices` are the multipliers its loss used."""

    step: int
    metrics: dict[str, float]
    prices: Prices | None


def train(
    config: RLHF, groups: Groups, prompts: PromptStream, seed: int, start: int, on_step: Callable[[StepResult], None]
) -> None:
    """Run the steps `start` .. `config.steps`; all groups are loaded and hold the weights of version start - 1."""
    for step in range(start, config.steps + 1):
        clock = Clock()
        requests = sample_requests(prompts.next_batch(), config.samples_per_prompt, seed, step)
        batch = collect_experience(groups, requests)
        clock.lap("rollout_s")

        prices = None
        if groups.multipliers is not None:  # λ and an adapted β first, then the policy
            costs = {name: batch.scores[name] for name in config.constraints}
            kl = groups.learner.handles[0].measure_kl.remote(batch) if config.advantage.kl_target else None
            prices = groups.multipliers.update.remote(step, costs, kl)
        advantages = {name: group.call("advantages", batch, prices)[0] for name, group in groups.signals.items()}
        learning = groups.learner.call("step", step, batch, advantages, prices)
        fitting = {name: group.call("train_critic", step) for name, group in groups.signals.items()}
        timeout = config.learner.timeout_s
        metrics = get(learning, timeout, "the learner")[0]
        for name, refs in fitting.items():
            metrics |= {f"{name}/{key}": value for key, value in get(refs, timeout, f"signal {name}")[0].items()}
        clock.lap("learn_s")

        update = get(groups.learner.call("publish", step), timeout, "the learner (publishing weights)")[0]
        groups.rollout.load_weights(update)
        clock.lap("transfer_s")
        applied = None if prices is None else get(prices, timeout, "the multiplier owner")
        on_step(StepResult(step, metrics | (applied.metrics() if applied else {}) | clock.seconds, applied))


def sample_requests(
    prompts: Sequence[tuple[int, str]], samples_per_prompt: int, seed: int, step: int
) -> list[PromptRequest]:
    """One request per prompt and sample; the seed of each depends on nothing but (seed, step, prompt, sample)."""
    return [
        PromptRequest(place * samples_per_prompt + sample, prompt, request_seed(seed, step, index, sample))
        for place, (index, prompt) in enumerate(prompts)
        for sample in range(samples_per_prompt)
    ]


def collect_experience(groups: Groups, requests: Sequence[PromptRequest]) -> StepBatch:
    """Sample all requests; every chunk goes to the signals and the reference the moment it is finished."""
    chunks: list[tuple[int, Any, Any, dict[str, Any]]] = []
    for number, chunk in enumerate(groups.rollout.generate(requests)):
        reference = groups.reference_logprobs(number, chunk.experience)
        scores = {
            name: turn(group.handles, number).score.remote(chunk.experience) for name, group in groups.signals.items()
        }
        chunks.append((min(chunk.info.uids), chunk.experience, reference, scores))
    chunks.sort(key=lambda chunk: chunk[0])  # the order of arrival must not decide anything
    return StepBatch(
        experience=[chunk[1] for chunk in chunks],
        reference=[chunk[2] for chunk in chunks],
        scores={name: [chunk[3][name] for chunk in chunks] for name in groups.signals},
    )
