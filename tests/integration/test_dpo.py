"""DPO stages on Ray Train: the preferred responses get ahead, and SACPO's second step starts from the first."""

import math
from contextlib import nullcontext

import pytest
import torch

from castor.config.data import DataSource, SyntheticOptions
from castor.config.dpo import DPO
from castor.config.training import Engine, LoRA, Optimizer
from castor.data.rows.schemas import parse_row
from castor.models.policy import PolicyModel
from castor.run.files import StageFiles
from castor.synthetic.corpus import preference_rows
from tests.numerics import TINY_MODELS, tolerance
from tests.plans import claim_of

OPTIONS = SyntheticOptions(label_noise=0.0, safety_noise=0.0)
ROWS = [parse_row(row) for row in preference_rows(OPTIONS, "train", 240)]


def run(model, out, **options):
    from trainers.supervised.driver import run_supervised

    stage = DPO(
        data=[DataSource()], max_steps=20, batch_size=16, max_length=128, validation_share=0.2, eval_every=10,
        engine=Engine(micro_batch_tokens=2048, pack_length=128, optimizer=Optimizer(lr=1e-3, lr_warmup_ratio=0.1)),
        **options,
    )  # fmt: skip
    losses = []

    def note(progress):
        losses.extend(value for name, value in progress.metrics.items() if name == "loss")

    metrics = run_supervised(
        stage,
        model=model,
        rows=nullcontext(ROWS),
        files=StageFiles(out),
        template="auto",
        seed=0,
        claim=claim_of(),
        on_progress=note,
    )
    return metrics, losses


def learned(metrics, losses):
    """A stage starts at its reference, where every loss is log 2, and ends with the preferred responses ahead."""
    early, late = metrics["history"]
    return (
        losses[0] == pytest.approx(math.log(2), abs=tolerance(6.0, TINY_MODELS))
        and late["margin_mean"] > early["margin_mean"] > 0
        and late["validation_loss"] < math.log(2)
        and late["accuracy"] > 0.6
    )


def test_helpfulness_then_harmlessness(ray_session, tiny_models, tmp_path):
    first = run(tiny_models.policy, tmp_path / "helpful")
    assert learned(*first)
    second = run(str(tmp_path / "helpful"), tmp_path / "sacpo", preference="safer", lora=LoRA(rank=8))
    assert learned(*second)
    assert (tmp_path / "sacpo.adapter" / "adapter_config.json").is_file()
    assert not (tmp_path / "sacpo.training").exists()
    before, after = (PolicyModel.load(str(tmp_path / name), torch.float32) for name in ("helpful", "sacpo"))
    changed = [name for name, tensor in before.named_parameters() if not torch.equal(tensor, after.get_parameter(name))]
    assert changed
    assert not any("embed" in name or "norm" in name for name in changed)  # adapters only
