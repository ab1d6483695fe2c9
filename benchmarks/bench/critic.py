"""A critic's fit to a step's returns, against a bare PyTorch loop over the same packed rows."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from actors.critic import Critic
from benchmarks.bench.batches import alone, bare_optimizer, bare_update, engine, experience
from benchmarks.bench.countdown import Shape, make_models
from benchmarks.bench.measurement import Ratio, Section, in_turns, paired
from benchmarks.bench.step import ppo_lag
from castor.models.score import ScoreModel
from engines.batch import make_micro_batch, plan_mini_batches

CLIP = 5.0


def measure(smoke: bool) -> Section:
    """Tokens of a step, prompts included, per second; through DeepSpeed, and without."""
    shape, responses, repetitions = Shape(), 64, 8
    if smoke:
        shape, responses, repetitions = Shape(hidden=64, layers=2, heads=2, intermediate=96, longest=30), 8, 2
    batch, config = experience(shape, responses), ppo_lag(responses, shape.longest, steps=10**6)
    random = np.random.default_rng(1)
    total = int(batch.response_lengths.sum())
    values, returns = random.normal(size=(2, total)).astype(np.float32)
    with tempfile.TemporaryDirectory() as place, alone():
        models = make_models(Path(place), shape)
        critic = Critic("reward", str(models.reward), config, engine(), 0, 0, 1)
        bare = ScoreModel.load(str(models.reward), torch.float32).train()
        optimizer = bare_optimizer(bare)
        (mini,) = plan_mini_batches(batch, config.learner, engine(), rank=0, world_size=1, seed=(0,))
        columns = {"values": values, "returns": returns}
        packed = [
            make_micro_batch(batch, each, columns, engine().pack_length, torch.device("cpu")) for each in mini.micro
        ]

        def bare_fit() -> None:
            for micro in packed:
                rows = micro.rows
                hidden = bare.backbone(
                    rows.input_ids, position_ids=rows.position_ids, use_cache=False
                ).last_hidden_state
                chosen = hidden.flatten(0, 1)[rows.flat[micro.response_positions - 1]]
                predicted = torch.nn.functional.linear(chosen, bare.score_head.weight, bare.score_head.bias).squeeze(-1)
                before, target = micro.columns["values"], micro.columns["returns"]
                near = torch.clamp(predicted, before - CLIP, before + CLIP)
                loss = 0.5 * torch.maximum((predicted - target) ** 2, (near - target) ** 2)
                weights = torch.repeat_interleave(1.0 / (micro.lengths * responses), micro.lengths)
                (loss * weights).sum().backward()
            bare_update(bare, optimizer)

        times = in_turns({"Castor": lambda: critic.train(batch, values, returns, 1), "bare": bare_fit}, repetitions)
    tokens = len(batch.tokens)
    return Section(
        "critic",
        (
            Ratio(
                "bare loop / fit of the critic",
                paired(times["bare"], times["Castor"]),
                at_least=0.95,
                bounded_by="packing the rows, and what DeepSpeed does around forward, backward and step",
            ),
        ),
        {f"{name} (tokens/s)": tokens / float(np.median(seconds)) for name, seconds in times.items()},
    )
