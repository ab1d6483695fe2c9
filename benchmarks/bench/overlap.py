"""Rollout and learning at the same time: a step against the longer of its two halves."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.bench.countdown import Shape, long_tailed, make_models, make_prompts
from benchmarks.bench.loop import Block, running
from benchmarks.bench.measurement import Ratio, Section
from benchmarks.bench.step import MEAN_LENGTH, PROMPT_TOKENS, SKIPPED, ppo_lag
from castor.config.rlhf import RLHF
from castor.data.tokens.prompt_stream import PromptStream

HALVES = ("rollout_s", "learn_s", "transfer_s")


def one_core_each(responses: int, longest: int) -> RLHF:
    """Two samples of each prompt compared with each other: without critics, learning is a single process."""
    config = ppo_lag(responses, longest, steps=10**6).model_dump()
    config |= {"samples_per_prompt": 2, "prompts_per_step": responses // 2, "multipliers": None}
    config["signals"] = {"reward": config["signals"]["reward"]}
    config["advantage"] = {"estimator": "leave_one_out"}
    config["rollout"] |= {"max_staleness": 1}
    return RLHF.model_validate(config)


def measure(smoke: bool) -> Section:
    """The same actors in turns and with one step's overlap, block by block."""
    shape, responses, blocks, counted = Shape(), 64, 2, 3
    if smoke:
        shape, responses = Shape(hidden=64, layers=2, heads=2, intermediate=96, longest=30), 8
        blocks, counted = 2, 1
    config = one_core_each(responses, shape.longest)
    prompts = responses // 2 * (SKIPPED + counted) * blocks
    lengths = long_tailed(prompts, shape, MEAN_LENGTH, seed=0)
    over_longer, over_whole, rows = [], [], list[dict[str, float]]()
    with tempfile.TemporaryDirectory() as place:
        models = make_models(Path(place), shape)
        stream = PromptStream(make_prompts(lengths, PROMPT_TOKENS, 0), config.prompts_per_step, 0)
        with running(config, models.policy, {"reward": models.reward}, Path(place)) as loop:
            for _ in range(blocks):
                turns, overlapping = (loop.block(stream, SKIPPED + counted, staleness) for staleness in (0, 1))
                step = statistics.median(overlapping.seconds(SKIPPED))
                halves = _halves(turns)
                over_longer.append(step / max(halves))
                over_whole.append(sum(halves) / step)
                rows.append({"step, overlapping (s)": step, "rollout (s)": halves[0], "learning (s)": halves[1]})
    cores = os.cpu_count() or 1
    bound = f"{cores} cores for rollout, learner, judge and reference"
    return Section(
        "overlap",
        (
            Ratio("overlapping step / longer half", tuple(over_longer), at_most=1.15, bounded_by=bound),
            Ratio("steps a second, overlapping / in turns", tuple(over_whole), bounded_by=bound),
        ),
        {name: float(np.median([row[name] for row in rows])) for name in rows[0]},
    )


def _halves(turns: Block) -> tuple[float, float]:
    """Median seconds of rollout with judging, and of learning with the transfer of its weights."""
    rollout, learn, transfer = ([row[lap] for row in turns.rows[SKIPPED:]] for lap in HALVES)
    return statistics.median(rollout), statistics.median(map(sum, zip(learn, transfer, strict=True)))
