"""Steps that others have published, against what the planner says of the same work (docs/scale.md has the table)."""

import pytest

from castor.planner.device import H100
from castor.planner.forecast import Traffic, forecast
from castor.planner.lengths import Lengths
from tests.unit.planner.runs import stage_of

# NeMo-RL's GRPO recipe for Llama-3.1-8B: 64 prompts x 32 samples, 4 optimiser steps, at most 4,096 tokens
ENGINE = {"zero_stage": 2, "micro_batch_tokens": 16384, "pack_length": 4352}
JUDGE = {"role": "objective", "function": "math_rewards:score", "critic": None}
PROMPT = 128


def grpo(gpus, mean, shares, **rollout):
    learner, reference = shares
    share = {"resources": {"gpus": learner}}
    stage, sizes = stage_of(
        samples_per_prompt=32,
        advantage={"estimator": "group_relative"},
        signals={"right": JUDGE},
        rollout={"workers": gpus, "max_new_tokens": 4096, "max_num_seqs": 512, "gpu_memory_utilization": 0.6} | rollout,
        learner={"ranks": gpus, "mini_batches": 4, "engine": ENGINE} | share,
        reference={"ranks": gpus, "resources": {"gpus": reference}},
        colocate=not rollout.get("max_staleness"),
    )
    return forecast(stage, sizes, H100, 8, Traffic(PROMPT, Lengths(mean, 4096)), steps=4)


def in_turns(gpus, mean):
    return grpo(gpus, mean, (0.3, 0.3), resources={"gpus": 0.3})


def test_eight_h100s_in_turns_which_the_shares_are_calibrated_against():
    told = in_turns(8, 800)
    assert told.parts["rollout"] == pytest.approx(58, rel=0.1)
    # both passes of log-probabilities: the reference's, and the learner's own, which is part of its step
    assert told.parts["judging"] + told.parts["learner"] == pytest.approx(18 + 28, rel=0.1)


def test_sixteen_h100s_in_turns():
    told = in_turns(16, 1000)
    published = 2048 * (PROMPT + 1000) / (1581 * 16)  # of prompts and responses
    working = told.step_s - told.parts["switching"] - told.parts["weights"]  # of the peer's moves only 5 s are known
    assert working == pytest.approx(published - 5, rel=0.15)


def test_sixteen_h100s_one_step_apart():
    told = grpo(8, 1000, (0.49, 0.51), max_staleness=1)
    assert told.gpus == 16
    published = 2048 * (PROMPT + 1000) / (2478 * 16)
    # Castor's weights go through the node's memory where the reference is beside the learner: not as published
    assert told.step_s - told.parts["weights"] == pytest.approx(published, rel=0.2)
