"""A model whose folder ships its own code passes through every loader and writer with trust, and none without."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from castor.cli.main import app
from castor.config.demo_model import DemoModel
from castor.data.tokens.template import load_tokenizer, require_same_tokenizer
from castor.dry_run.shapes import measure
from castor.io.errors import CastorError
from castor.model_reference import ModelReference
from castor.models.backbone import load_config
from castor.models.load import load_critic, load_score_model, read_score_info
from castor.models.moderation import (
    ModerationInfo,
    ModerationModel,
    export_classifier,
    read_moderation_info,
    save_moderation_model,
)
from castor.models.policy import PolicyModel, context_length
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from castor.models.tiny import make_demo_model
from castor.packing import pack_rows
from castor.scoring.moderator import Moderator
from tests.own_code import FILES, write_own_code_model

SMALL = DemoModel(hidden_size=16, layers=1, heads=2, intermediate_size=24, max_position_embeddings=64)
REFUSED = r"own ships code of its own.*trust_remote_code: true"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Llama, and a model of the same weights with code of its own."""
    folder = tmp_path_factory.mktemp("models")
    make_demo_model(SMALL, ["how do I bake bread", "mix flour and water"], 0, folder / "llama")
    write_own_code_model(folder / "own", folder / "llama", mlp_scale=20.0)
    return folder


@pytest.fixture
def own(folders):
    return ModelReference(str(folders / "own"), None, True)


def trusted(folder):
    return ModelReference(str(folder), None, True)


def rows_and_ends():
    return pack_rows(np.arange(12) % 7, np.array([5, 7]), 12), torch.tensor([4, 11])


@torch.no_grad()
def outputs(model):
    return model.eval()(*rows_and_ends())


def test_a_policy_is_trained_on_in_its_own_code(folders, own, tmp_path):
    torch.manual_seed(0)
    policy = PolicyModel.load(own, torch.float32)
    assert type(policy.lm).__name__ == "OwnForCausalLM"
    assert (outputs(policy) - outputs(PolicyModel.load(folders / "llama", torch.float32))).abs().max() > 1e-3
    policy.save(tmp_path / "own", dict(policy.state_dict()), own)
    assert {path.name for path in (tmp_path / "own").glob("*.py")} == set(FILES)
    again = trusted(tmp_path / "own")
    assert torch.equal(outputs(PolicyModel.load(again, torch.float32)), outputs(policy))
    assert load_tokenizer(again).own
    assert load_tokenizer(again).get_vocab() == load_tokenizer(folders / "llama").get_vocab()
    assert context_length(again) == 64
    assert measure(again) == measure(own) == measure(folders / "llama")
    require_same_tokenizer(again, own, "the reference")
    with pytest.raises(CastorError, match=REFUSED):
        PolicyModel.load(tmp_path / "own", torch.float32)


def test_a_score_model_keeps_the_code_of_its_backbone(own, tmp_path):
    model = ScoreModel.from_backbone(own, ScoreInfo("cost", std=2.0), torch.float32)
    save_score_model(tmp_path / "own", model.backbone, dict(model.state_dict()), model.info, own)
    assert {path.name for path in (tmp_path / "own").glob("*.py")} == set(FILES)
    again = trusted(tmp_path / "own")
    loaded = load_score_model(again, torch.float32)
    assert type(loaded.backbone).__name__ == "OwnModel"
    assert torch.equal(outputs(loaded), outputs(model))
    torch.testing.assert_close(outputs(load_critic(again, torch.float32)), outputs(model))
    assert read_score_info(tmp_path / "own") == model.info  # a file of ours: no code is needed for it
    assert measure(again) == measure(own)
    for load in (load_score_model, load_critic):
        with pytest.raises(CastorError, match=REFUSED):
            load(tmp_path / "own", torch.float32)


def test_a_moderation_model_keeps_the_code_of_its_backbone(own, tmp_path):
    info = ModerationInfo.fresh("pku", "pair", severity=True)
    model = ModerationModel.from_backbone(own, info, torch.float32)
    save_moderation_model(tmp_path / "own", model.backbone, dict(model.state_dict()), info, own)
    again = trusted(tmp_path / "own")
    assert torch.equal(outputs(ModerationModel.load(again, torch.float32)), outputs(model))
    assert read_moderation_info(tmp_path / "own") == info
    assert Moderator(again).predict([("how do I", "bake bread")]).probabilities.shape == (1, 19)
    with pytest.raises(CastorError, match="has a sequence classifier for own_llama"):
        export_classifier(again, tmp_path / "plain")
    for load in (lambda folder: ModerationModel.load(folder, torch.float32), Moderator):
        with pytest.raises(CastorError, match=REFUSED):
            load(tmp_path / "own")


def test_export_takes_the_code_along(own, tmp_path):
    model = ScoreModel.from_backbone(own, ScoreInfo("reward"), torch.float32)
    save_score_model(tmp_path / "own", model.backbone, dict(model.state_dict()), model.info, own)
    arguments = ["export", str(tmp_path / "own"), str(tmp_path / "out"), "--as"]
    with pytest.raises(CastorError, match=r"own ships code of its own.*\(on a command line: --trust-remote-code\)"):
        CliRunner().invoke(app, [*arguments, "castor"], catch_exceptions=False)
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(app, [*arguments, "castor", "--trust-remote-code"])
    assert result.exit_code == 0, result.output
    assert torch.equal(outputs(load_score_model(trusted(tmp_path / "out"), torch.float32)), outputs(model))
    for layout, message in (("pku", "knows no own_llama score models"), ("sequence-classification", "for own_llama")):
        other = [*arguments[:2], str(tmp_path / layout), "--as", layout, "--trust-remote-code"]
        with pytest.raises(CastorError, match=message):
            CliRunner().invoke(app, other, catch_exceptions=False)


@pytest.mark.parametrize(
    "load",
    [
        load_config,
        load_tokenizer,
        context_length,
        measure,
        lambda model: PolicyModel.load(model, torch.float32),
        lambda model: ScoreModel.from_backbone(model, ScoreInfo("reward"), torch.float32),
        lambda model: load_score_model(model, torch.float32),
        read_score_info,
        read_moderation_info,
        lambda model: require_same_tokenizer(model, model, "the critic"),
    ],
)
def test_untrusted_code_is_refused_in_one_sentence(folders, load):
    with pytest.raises(CastorError, match=REFUSED) as refusal:
        load(folders / "own")
    assert "\n" not in str(refusal.value)
