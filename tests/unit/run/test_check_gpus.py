"""What is wrong with GPUs is said in one sentence before anything starts."""

import json
from pathlib import Path

import pytest

from castor.config.load import load_config
from castor.io.errors import CastorError
from castor.run.check import check
from castor.run.plan import make_plan

CONFIGS = Path(__file__).parents[3] / "configs"
PPO_LAG = CONFIGS / "llama-8b" / "ppo_lag.yaml"
ROLLOUT, LEARNER = "rlhf.ppo_lag.rollout", "rlhf.ppo_lag.learner"


def checked(*overrides, file=PPO_LAG):
    check(make_plan(load_config(file, overrides)))


def test_the_presets_are_right():
    checked()
    checked(file=CONFIGS / "llama-70b" / "ppo_lag.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"{ROLLOUT}.tensor_parallel_size=2"], r"rollout: tensor_parallel_size 2 .* resources\.gpus is 1: make them"),
        ([f"{ROLLOUT}.resources.gpus=2"], r"rollout: tensor_parallel_size 1 .* resources\.gpus is 2: make them agree"),
        ([f"{ROLLOUT}.resources.gpus=1.5"], r"rollout asks for 1\.5 GPUs, and only a single GPU can be shared"),
        ([f"{LEARNER}.resources.gpus=2"], r"learner asks for 2 GPUs, and one process computes on one GPU"),
        (
            [f"{ROLLOUT}.resources.gpus=0.4", f"{ROLLOUT}.gpu_memory_utilization=0.5"],
            r"gpu_memory_utilization 0\.5 takes more of a GPU than resources\.gpus 0\.4",
        ),
        (
            ["rlhf.ppo_lag.signals.harm.ranks=4"],
            r"^ppo_lag asks for 10 GPUs \(.*signal-harm 4 x 1\), and ray\.hardware has 1 x 8: lower workers or ranks",
        ),
        (
            ["rlhf.ppo_lag.policy.reference.ranks=4", f"{LEARNER}.ranks=1"],
            r"more shares of over half a GPU \(0\.51\) than GPUs are left beside 5 whole ones",
        ),
        (
            [f"{ROLLOUT}.tensor_parallel_size=16", f"{ROLLOUT}.resources.gpus=16"],
            r"one rollout asks for 16 GPUs of one node, and ray\.hardware has 1 x 8",
        ),
        (["reward.workers=9"], r"^reward asks for 9 GPUs"),
    ],
)  # fmt: skip
def test_gpus_that_cannot_be_had_are_named(overrides, message):
    with pytest.raises(CastorError, match=message) as error:
        checked(*overrides)
    assert all(line.count(": ") >= 1 for line in str(error.value).splitlines())


def test_without_hardware_the_cluster_is_not_asked():
    checked("rlhf.ppo_lag.signals.harm.ranks=4", "ray.hardware=null")


def test_heads_must_be_shared_out_evenly(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 6, "max_position_embeddings": 2048}))
    engine = [f"{ROLLOUT}.tensor_parallel_size=4", f"{ROLLOUT}.resources.gpus=4", "ray.hardware.nodes=2"]
    policy = f"rlhf.ppo_lag.policy.model={tmp_path}"
    with pytest.raises(CastorError, match=r"tensor_parallel_size 4 does not divide the 6 attention heads.*: take 2"):
        checked(policy, *engine)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 8}))
    checked(policy, *engine)
    with pytest.raises(CastorError, match=r"tensor_parallel_size 3 does not divide the 4 attention heads of stage:sft"):
        checked(
            "rlhf.ppo_lag.rollout.tensor_parallel_size=3", "rlhf.ppo_lag.rollout.resources.gpus=3",
            file=CONFIGS / "demo.yaml",
        )  # fmt: skip
