"""The fastest splits of some GPUs, of those that fit their memory."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count

import numpy as np

from castor.config.rlhf import RLHF
from castor.dry_run.fit import card_findings
from castor.dry_run.gpus import stage_gpus
from castor.dry_run.placement import Sizes, placed
from castor.planner.costs import Costs, Tokens
from castor.planner.forecast import Forecast, Traffic, forecast
from castor.planner.offer import Offer
from castor.planner.split import Split, splits
from castor.planner.work import Work
from castor.run.bundles import make_bundles
from castor.run.stages.rlhf import RLHFStage

SIMULATED = 6  # splits of each mode: those with the best estimates that fit


@dataclass(frozen=True)
class Alternative:
    """A split, and a step of it."""

    split: Split
    stage: RLHFStage
    forecast: Forecast


def findings(stage: RLHFStage, sizes: Sizes, offer: Offer) -> list[str]:
    """Why a run does not fit the GPUs; empty where it does. Models of unknown size are not counted."""
    actors, hardware = stage.actors(), offer.hardware
    stages = {stage.name: [placed(each, sizes) for each in actors]}
    found = card_findings(stages, hardware)
    gpus = stage_gpus(make_bundles(actors, hardware.gpus_per_node), stages[stage.name], hardware)
    return found if found or gpus.fits else [gpus.verdict(stage.name).removesuffix(".")]


def search(stage: RLHFStage, sizes: Sizes, offer: Offer, traffic: Traffic) -> list[Alternative]:
    """The best split of each mode (apart at every staleness, in turns), the fastest first; none where none fits."""
    found, number = list[tuple[float, int, Split, RLHF]](), count()
    for split in splits(stage.section, offer.gpus):
        run = split.applied(stage.section)
        if run is not None:
            heapq.heappush(found, (_estimate(run, sizes, offer, traffic), next(number), split, run))
    simulated: dict[tuple[bool, int], list[Alternative]] = {}
    while found:
        _, _, split, run = heapq.heappop(found)
        same = simulated.setdefault(split.mode, [])
        other = RLHFStage(stage.name, stage.place, run)
        if len(same) < SIMULATED and not findings(other, sizes, offer):
            told = forecast(other, sizes, offer.device, offer.gpus_per_node, traffic)
            same.append(Alternative(split, other, told))
    best = [min(same, key=lambda each: each.forecast.step_s) for same in simulated.values() if same]
    return sorted(best, key=lambda each: each.forecast.step_s)


def _estimate(run: RLHF, sizes: Sizes, offer: Offer, traffic: Traffic) -> float:
    """Seconds of a step without its queues: what to simulate follows from it, not what is told."""
    work = Work(run, sizes, Costs(offer.device, offer.gpus_per_node))
    responses = run.prompts_per_step * run.samples_per_prompt
    mine = traffic.lengths.draw(-(-responses // run.rollout.workers), np.random.default_rng(0))
    sampling = work.decoder(traffic.prompt + traffic.lengths.mean).finished(
        traffic.prompt, [int(length) for length in mine]
    )[-1][0]
    mean = traffic.prompt + traffic.lengths.mean
    tokens = Tokens(mean * responses, traffic.lengths.mean * responses, mean, run.samples_per_prompt)
    values = max(work.values(name, tokens) for name in run.signals)
    fitting = max(work.fitting(name, tokens) for name in run.signals)
    learning, weights = work.learning(tokens), work.publishing() + work.loading() * (run.transfer == "host")
    chunks = -(-responses // run.rollout.chunk_size)
    chunk = tokens.part(1 / chunks)
    judging = max(-(-chunks // run.signals[name].ranks) * work.judging(name, chunk) for name in run.signals)
    alone = run.policy.lora is not None and run.learner.engine.zero_stage == 3  # all ranks are asked for every chunk
    replicas = 1 if alone else run.policy.reference.ranks if run.policy.lora is None else run.learner.ranks
    referring = -(-chunks // replicas) * work.reference(chunk)
    if run.colocate:
        return sampling + judging + referring + values + fitting + learning + weights
    judged = max(sampling, judging, referring)
    if not run.rollout.max_staleness:
        return judged + values + max(fitting, learning) + weights
    beside = referring if min(run.learner.resources.gpus, 1) < 1 or run.policy.lora is not None else 0.0
    return max(judged, values + max(fitting + judging, learning + beside) + weights)
