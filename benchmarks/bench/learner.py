"""The learner's step, against a bare PyTorch loop over the same packed rows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
import torch
from transformers import AutoModelForCausalLM

from actors.cluster import cluster
from actors.learner import LearnerWorker
from actors.multipliers import Coefficients
from actors.step_batch import StepBatch
from benchmarks.bench.batches import alone, bare_optimizer, bare_update, engine, experience
from benchmarks.bench.countdown import Shape, make_models
from benchmarks.bench.measurement import Ratio, Section, in_turns, paired
from benchmarks.bench.step import ppo_lag
from castor.config.cluster import RayCluster
from castor.model_reference import ModelReference
from engines.batch import make_micro_batch, plan_mini_batches

CLIP, MULTIPLIER = 0.2, 0.7


def measure(smoke: bool) -> Section:
    """The class of the learner's actors, in this process, with its experience in the object store."""
    shape, responses, repetitions = Shape(), 64, 8
    if smoke:
        shape, responses, repetitions = Shape(hidden=64, layers=2, heads=2, intermediate=96, longest=30), 8, 2
    batch, config = experience(shape, responses), ppo_lag(responses, shape.longest, steps=10**6)
    loose = {"logprob_gap_alarm": 1e9}  # the tokens are made up, not sampled
    config = config.model_copy(update={"learner": config.learner.model_copy(update=loose)})
    random = np.random.default_rng(1)
    total = int(batch.response_lengths.sum())
    reference = batch.logprobs + random.normal(0, 0.1, total).astype(np.float32)
    advantages = {name: random.normal(size=total).astype(np.float32) for name in ("reward", "cost")}
    combined = (advantages["reward"] - MULTIPLIER * advantages["cost"]) / (1.0 + MULTIPLIER)
    with tempfile.TemporaryDirectory() as place, alone(), cluster(RayCluster()):
        models = make_models(Path(place), shape)
        learner = cast(Any, LearnerWorker).__ray_metadata__.modified_class()
        learner.rank, learner.world_size = 0, 1
        threads = torch.get_num_threads()
        learner.load(ModelReference(str(models.policy)), config, 0, "auto", None)
        torch.set_num_threads(threads)
        stored = StepBatch([ray.put(batch)], [ray.put(reference)], {})
        refs = {name: ray.put(values) for name, values in advantages.items()}
        prices = Coefficients(1, {"cost": MULTIPLIER}, {"cost": 0.0})

        bare = AutoModelForCausalLM.from_pretrained(models.policy, dtype=torch.float32).train()
        optimizer = bare_optimizer(bare)
        (mini,) = plan_mini_batches(batch, config.learner, engine(), rank=0, world_size=1, seed=(0,))
        columns = {"advantages": combined}
        packed = [
            make_micro_batch(batch, each, columns, engine().pack_length, torch.device("cpu")) for each in mini.micro
        ]

        def bare_step() -> None:
            for micro in packed:
                rows, targets = micro.rows, micro.rows.flat[micro.response_positions]
                hidden = bare.model(rows.input_ids, position_ids=rows.position_ids, use_cache=False).last_hidden_state
                logits = bare.lm_head(hidden.flatten(0, 1)[targets - 1])
                tokens = rows.input_ids.flatten()[targets]
                logprobs = torch.log_softmax(logits, -1).gather(-1, tokens[:, None]).squeeze(-1)
                ratio, gain = (logprobs - micro.columns["logprobs"]).exp(), micro.columns["advantages"]
                loss = -torch.minimum(gain * ratio, gain * ratio.clamp(1.0 - CLIP, 1.0 + CLIP))
                weights = torch.repeat_interleave(1.0 / (micro.lengths * responses), micro.lengths)
                (loss * weights).sum().backward()
            bare_update(bare, optimizer)

        times = in_turns({"Castor": lambda: learner.step(1, stored, refs, prices), "bare": bare_step}, repetitions)
    tokens = len(batch.tokens)
    return Section(
        "learner",
        (
            Ratio(
                "bare loop / step of the learner",
                paired(times["bare"], times["Castor"]),
                at_least=0.95,
                bounded_by="reading and packing the experience, the step's metrics, and what DeepSpeed does around "
                "forward, backward and step",
            ),
        ),
        {f"{name} (tokens/s)": tokens / float(np.median(seconds)) for name, seconds in times.items()},
    )
