"""A moderation model trained for a few steps on Ray Train, and its probability as a cost of the RLHF loop."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from castor.config.data import SyntheticOptions
from castor.config.judge import Classifier
from castor.config.moderation import Moderation
from castor.config.supervised import Best
from castor.config.training import Engine, Optimizer
from castor.data.rows.schemas import parse_row
from castor.models.classifier_cost import ClassifierCost
from castor.packing import pack_rows
from castor.run.files import StageFiles
from castor.scoring.moderator import Moderator
from castor.synthetic.corpus import qa_rows
from tests.numerics import TINY_MODELS, assert_close
from tests.plans import claim_of

ROWS = [parse_row(row) for row in qa_rows(SyntheticOptions(taxonomy="pku"), "train", 240)]


@pytest.fixture(scope="module")
def trained(ray_session, tiny_models, tmp_path_factory):
    """Folder and metrics of a severity-sensitive model after a few steps."""
    from trainers.supervised.driver import run_supervised

    out = tmp_path_factory.mktemp("run") / "severity"
    stage = Moderation(
        data=[{"source": "synthetic"}], taxonomy="pku", severity=True, max_steps=12, batch_size=16, max_length=128,
        validation_share=0.3, eval_every=6, best=Best(metric="f1"),
        engine=Engine(optimizer=Optimizer(lr=3e-3)),
    )  # fmt: skip
    losses = []

    def note(progress):
        losses.extend(value for name, value in progress.metrics.items() if name == "loss")

    metrics = run_supervised(
        stage,
        model=tiny_models.policy,
        rows=nullcontext(ROWS),
        files=StageFiles(out),
        template="auto",
        seed=0,
        claim=claim_of(),
        on_progress=note,
    )
    return out, metrics, losses


def test_a_stage_trains_measures_and_saves(trained):
    folder, metrics, losses = trained
    assert (metrics["steps"], metrics["kept_step"] in (6, 12)) == (12, True)
    assert losses[-1] < losses[0]
    assert {"accuracy", "f1", "false_positive_rate", "exact_match", "severity_accuracy"} <= metrics.keys()
    verdict = Moderator(folder).predict([row.exchange for row in ROWS[:60]])
    assert verdict.probabilities.shape == (60, 19)
    assert (verdict.labels.any(1) == verdict.unsafe).all()
    assert ((verdict.severity > 0) == verdict.unsafe).all()
    assert 0 < verdict.unsafe.sum() < 60


def test_the_trained_model_is_a_cost(trained):
    moderator = Moderator(trained[0])
    cost = ClassifierCost(moderator.model, Classifier(reduce="expected_severity")).eval()
    tokens = [moderator.encode(*row.exchange) for row in ROWS[:20]]
    lengths = np.array([len(each) for each in tokens])
    with torch.no_grad():
        values = cost(pack_rows(np.concatenate(tokens), lengths, 128), torch.from_numpy(lengths.cumsum() - 1)).numpy()
    verdict = moderator.predict([row.exchange for row in ROWS[:20]])
    threshold = moderator.info.thresholds.expected_severity
    assert_close(values, verdict.severity_probabilities @ np.arange(4) - threshold, TINY_MODELS)
