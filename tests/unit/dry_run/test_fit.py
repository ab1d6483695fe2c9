"""A run that its cards cannot hold is refused before anything starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from castor.config.load import load_config
from castor.dry_run.fit import require_fit
from castor.io.errors import CastorError
from castor.run.plan import make_plan

ROOT = Path(__file__).parents[3]
PPO_LAG = ROOT / "configs" / "llama-8b" / "ppo_lag.yaml"
LARGE = ROOT / "configs" / "llama-70b" / "ppo_lag.yaml"
RUN = "rlhf.ppo_lag"


def fit(file, *overrides):
    require_fit(make_plan(load_config(file, overrides)))


@pytest.mark.parametrize(
    ("file", "overrides", "message"),
    [
        (PPO_LAG, ["ray.hardware.gpu_memory_gib=39"], r"ppo_lag: learner holds about 5\d\.\d GiB, and a GPU has 39"),
        (PPO_LAG, [f"{RUN}.rollout.gpu_memory_utilization=0.1"], r"rollout needs 15\.\d GiB .* gives it 7\.9"),
        (PPO_LAG, [f"{RUN}.learner.engine.micro_batch_tokens=24576"], r"ppo_lag: TOO MUCH, .* GiB on the fullest of 8"),
        (LARGE, [f"{RUN}.rollout.tensor_parallel_size=1", f"{RUN}.rollout.resources.gpus=1"], r"rollout needs 13\d"),
        (
            LARGE,
            [f"{RUN}.policy.lora=null", f"{RUN}.policy.reference.resources={{gpus: 1}}", f"{RUN}.learner.ranks=4",
             f"{RUN}.learner.engine.offload.optimizer=cpu"],
            r"ppo_lag: reference holds about 14\d\.\d GiB, .* a frozen model lies whole on one GPU",
        ),
        (LARGE, [f"{RUN}.rollout.tensor_parallel_size=3", f"{RUN}.rollout.resources.gpus=3"], r"3 does not divide"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_a_sentence(file, overrides, message):
    with pytest.raises(CastorError, match=message):
        fit(file, *overrides)


def test_what_fits_is_not_refused_and_unknown_cards_are_not_asked():
    fit(PPO_LAG)
    fit(LARGE)
    fit(PPO_LAG, "ray.hardware=null", f"{RUN}.rollout.gpu_memory_utilization=0.1")


def test_the_command_ends_before_it_makes_anything(tmp_path):
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "castor",
        "pipeline",
        str(PPO_LAG),
        f"run_dir={run}",
        "ray.hardware.gpu_memory_gib=39",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "castor: ppo_lag: learner holds about" in done.stderr
    assert not run.exists()
