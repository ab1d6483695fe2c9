"""What a reward, cost or moderation stage starts from: a head of its own kind goes on, another one is fresh."""

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from castor.config.demo_model import DemoModel
from castor.io.errors import CastorError
from castor.models.export import save_classifier
from castor.models.head_kind import continues_head, head_kind
from castor.models.load import load_score_model
from castor.models.moderation import ModerationInfo, ModerationModel, export_classifier, save_moderation_model
from castor.models.pku import save_pku
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from castor.models.start import start_line, start_moderation_model, start_score_model
from castor.models.tiny import make_demo_model
from castor.packing import pack_rows

SMALL = DemoModel(hidden_size=16, layers=1, heads=2, intermediate_size=24, max_position_embeddings=64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model; a reward and a cost model, and a moderation model of each taxonomy, on its backbone."""
    folder = tmp_path_factory.mktemp("models")
    make_demo_model(SMALL, ["how do I bake bread", "mix flour and water"], 0, folder / "lm")
    torch.manual_seed(1)
    for info in (ScoreInfo("reward", 0.7, 2.0), ScoreInfo("cost", 0.0, 3.0, -1.0, 1.0)):
        model = ScoreModel.from_backbone(folder / "lm", info, torch.float32)
        with torch.no_grad():
            model.score_head.bias.fill_(0.25)
        save_score_model(folder / info.score_type, model.backbone, dict(model.state_dict()), info, folder / "lm")
    for taxonomy, severity in (("pku", True), ("beavertails", False)):
        labels = ModerationInfo.fresh(taxonomy, "pair", severity)
        graded = ModerationModel.from_backbone(folder / "lm", labels, torch.float32)
        save_moderation_model(folder / taxonomy, graded.backbone, dict(graded.state_dict()), labels, folder / "lm")
    return folder


@torch.no_grad()
def outputs(model):
    return model.eval()(pack_rows(np.arange(12) % 7, np.array([5, 7]), 12), torch.tensor([4, 11]))


@pytest.mark.parametrize("kind", ["reward", "cost"])
def test_the_raw_scores_of_the_same_kind_go_on(folders, kind):
    before = load_score_model(folders / kind, torch.float32)
    started = start_score_model(folders / kind, kind, torch.float32, head_bias=True)
    assert started.info == ScoreInfo(kind)  # the stage fits its own normaliser
    torch.testing.assert_close(outputs(started), outputs(before) * before.info.std + before.info.mean)
    assert continues_head(folders / kind, kind) is True
    assert start_line(folders / kind, kind).startswith(f"goes on with the head of {folders / kind}")


@pytest.mark.parametrize(
    ("source", "kind"), [("lm", "reward"), ("reward", "cost"), ("cost", "reward"), ("pku", "cost")]
)
def test_another_head_is_fresh_and_said_to_be(folders, source, kind):
    torch.manual_seed(5)
    started = start_score_model(folders / source, kind, torch.float32, head_bias=True)
    torch.manual_seed(5)
    fresh = ScoreModel.from_backbone(folders / source, ScoreInfo(kind), torch.float32)
    assert torch.equal(outputs(started), outputs(fresh))
    assert continues_head(folders / source, kind) is False
    line = start_line(folders / source, kind)
    assert line is None if source == "lm" else "fresh head" in line and f"kind {source}, not {kind}" in line


def test_a_bias_goes_on_or_is_refused(folders, tmp_path):
    with pytest.raises(CastorError, match=r"head_bias is false, but the head of .*reward.* has the bias 0.25"):
        start_score_model(folders / "reward", "reward", torch.float32, head_bias=False)
    plain = ScoreModel.from_backbone(folders / "lm", ScoreInfo("reward"), torch.float32, head_bias=False)
    save_score_model(tmp_path, plain.backbone, dict(plain.state_dict()), plain.info, folders / "lm")
    for head_bias in (True, False):
        started = start_score_model(tmp_path, "reward", torch.float32, head_bias)
        assert (started.score_head.bias is not None) == head_bias
        assert torch.equal(outputs(started), outputs(plain))


def test_a_moderation_head_of_the_same_taxonomy_goes_on(folders, tmp_path):
    before = outputs(ModerationModel.load(folders / "pku", torch.float32))
    info = ModerationInfo.fresh("pku", "answer", severity=True)
    started = start_moderation_model(folders / "pku", info, torch.float32)
    assert torch.equal(outputs(started), before)
    assert started.info == info
    labels_only = ModerationInfo.fresh("pku", "pair", severity=False)
    assert torch.equal(outputs(start_moderation_model(folders / "pku", labels_only, torch.float32)), before[:, :19])
    other = ModerationInfo.fresh("beavertails", "pair", severity=False)
    assert not torch.equal(
        outputs(start_moderation_model(folders / "pku", other, torch.float32)),
        outputs(ModerationModel.load(folders / "beavertails", torch.float32)),
    )
    assert [continues_head(folders / "pku", kind) for kind in ("pku", "beavertails", "cost")] == [True, False, False]
    graded = ModerationInfo.fresh("beavertails", "pair", severity=True)  # the severity head alone is fresh
    added = outputs(start_moderation_model(folders / "beavertails", graded, torch.float32))
    assert torch.equal(added[:, :14], outputs(ModerationModel.load(folders / "beavertails", torch.float32)))


def test_every_layout_tells_its_kind(folders, tmp_path):
    reward = load_score_model(folders / "reward", torch.float32)
    save_pku(reward, tmp_path / "pku", folders / "reward")
    save_classifier(reward, tmp_path / "classifier", folders / "reward")
    export_classifier(folders / "beavertails", tmp_path / "labels")
    assert head_kind(tmp_path / "pku") == head_kind(tmp_path / "classifier") == "reward"
    assert head_kind(tmp_path / "labels") == "beavertails"
    assert head_kind(folders / "lm") is None
    assert head_kind("nobody-has/this-model") == "unknown"
    assert continues_head("nobody-has/this-model", "reward") is None
    pooled = DistilBertConfig(vocab_size=30, dim=16, hidden_dim=16, n_layers=1, n_heads=2, num_labels=1)
    DistilBertForSequenceClassification(pooled).save_pretrained(tmp_path / "bert")
    assert head_kind(tmp_path / "bert") is None  # its head is more than the linear layer `score`
    (tmp_path / "classifier" / "config.json").write_text("[")
    with pytest.raises(CastorError, match="does not describe a model"):
        head_kind(tmp_path / "classifier")
