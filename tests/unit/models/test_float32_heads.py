"""Heads are float32 beside any backbone, and so is what they are multiplied with."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from castor.config.demo_model import DemoModel
from castor.io.errors import CastorError
from castor.models.head import Float32Linear, Float32Parameters, compute_logits_in_float32
from castor.models.load import load_critic, load_score_model
from castor.models.moderation import ModerationInfo, ModerationModel, save_moderation_model
from castor.models.policy import PolicyModel
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from castor.models.tiny import make_demo_model
from castor.packing import pack_rows
from tests.numerics import assert_close

SMALL = DemoModel(hidden_size=64, layers=1, heads=2, intermediate_size=96, max_position_embeddings=64)
TEXT = [" ".join(f"word{n}" for n in range(500))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model of 500 words, a cost model and a moderation model on its backbone."""
    folder = tmp_path_factory.mktemp("models")
    make_demo_model(SMALL, TEXT, 0, folder / "lm")
    torch.manual_seed(1)
    cost = ScoreModel.from_backbone(folder / "lm", ScoreInfo("cost"), torch.float32)
    with torch.no_grad():
        cost.score_head.weight.mul_(0.02)
        cost.score_head.bias.fill_(4.0)  # scores close to each other, far from zero: few bfloat16 numbers lie there
    save_score_model(folder / "cost", cost.backbone, dict(cost.state_dict()), cost.info, folder / "lm")
    info = ModerationInfo.fresh("pku", "pair", severity=True)
    graded = ModerationModel.from_backbone(folder / "lm", info, torch.float32)
    save_moderation_model(folder / "pku", graded.backbone, dict(graded.state_dict()), info, folder / "lm")
    return folder


def rows_and_ends(count=300):
    lengths = np.full(count, 4)
    rows = pack_rows(np.random.default_rng(0).integers(5, 500, lengths.sum()), lengths, 64)
    return rows, torch.from_numpy(lengths.cumsum() - 1)


@pytest.mark.parametrize("load", [load_score_model, load_critic])
def test_scores_of_a_bfloat16_model_stay_apart(folders, load):
    exact, rounded = (load(folders / "cost", dtype).eval() for dtype in (torch.float32, torch.bfloat16))
    assert rounded.backbone.dtype == torch.bfloat16
    assert torch.equal(rounded.score_head.weight, exact.score_head.weight)
    with torch.no_grad():
        scores, wanted = rounded(*rows_and_ends()), exact(*rows_and_ends())
    assert scores.dtype == torch.float32
    assert len(scores.unique()) > 290
    assert len(scores.bfloat16().unique()) < 20  # what a head in bfloat16 would leave of them
    assert torch.corrcoef(torch.stack([scores, wanted]))[0, 1] > 0.99


def test_heads_of_a_bfloat16_moderation_model_are_float32(folders):
    model = ModerationModel.load(folders / "pku", torch.bfloat16).eval()
    heads = {name: tensor.dtype for name, tensor in model.named_parameters() if not name.startswith("backbone.")}
    assert len(heads) == 4
    assert set(heads.values()) == {torch.float32}
    with torch.no_grad():
        outputs = model(*rows_and_ends())
    assert outputs.dtype == torch.float32
    assert not torch.equal(outputs, outputs.bfloat16().float())


def test_a_module_that_is_cast_as_a_whole_still_multiplies_in_float32(folders):
    """An engine for bfloat16 casts every parameter of the model that it trains."""
    model = load_score_model(folders / "cost", torch.float32).to(torch.bfloat16)
    with torch.no_grad():
        assert len(model(*rows_and_ends()).unique()) > 290
    model(*rows_and_ends()).sum().backward()
    assert model.score_head.weight.grad.dtype == torch.bfloat16
    assert model.score_head.weight.grad.abs().sum() > 0


def test_a_head_computes_with_the_float32_weights_it_is_lent(folders):
    """An engine keeps them, and trains them with the gradients of the parameters it has cast."""
    model = load_score_model(folders / "cost", torch.float32)
    graded = ModerationModel.load(folders / "pku", torch.float32)
    for head, width in ((model.score_head, 64), (graded.severity_head, 64)):
        hidden, cast = torch.randn(20, width), copy.deepcopy(head).to(torch.bfloat16)
        expected = head(hidden)
        expected.square().sum().backward()
        layers = [module for module in cast.modules() if isinstance(module, Float32Parameters)]
        for name, parameter in head.named_parameters():
            owner, _, leaf = name.rpartition(".")
            cast.get_submodule(owner).exact[leaf] = parameter.detach().clone()
        assert len(layers) == (2 if head is graded.severity_head else 1)
        outputs = cast(hidden)
        assert torch.equal(outputs, expected)
        outputs.square().sum().backward()
        for name, parameter in head.named_parameters():
            assert torch.equal(cast.get_parameter(name).grad, parameter.grad.bfloat16()), name


def test_in_float32_it_is_a_linear_layer_bit_for_bit():
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 3)
    torch.manual_seed(0)
    ours, hidden = Float32Linear(64, 3), torch.randn(50, 64)
    assert torch.equal(ours.weight, plain.weight)
    assert torch.equal(ours(hidden), plain(hidden))


def test_a_head_that_was_trained_in_bfloat16_is_saved_as_float32(folders, tmp_path):
    model = load_score_model(folders / "cost", torch.float32).to(torch.bfloat16)
    save_score_model(tmp_path, model.backbone, dict(model.state_dict()), model.info, folders / "lm")
    loaded, saved = load_score_model(tmp_path, torch.bfloat16), load_file(tmp_path / "score_head.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    for name, trained in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name).float(), trained.float())


def logprobs_and_gradients(folders, dtype, head_dtype):
    """Of the tokens of some sequences, with the policy they are of."""
    policy = PolicyModel.load(folders / "lm", dtype, head_dtype=head_dtype)
    rows, ends = rows_and_ends(20)
    logprobs = policy(rows, ends)
    logprobs.sum().backward()
    return policy, logprobs.detach(), {name: parameter.grad for name, parameter in policy.named_parameters()}


def test_float32_logits_are_those_of_the_bfloat16_weights(folders):
    policy, logprobs, gradients = logprobs_and_gradients(folders, torch.bfloat16, "float32")
    rows, ends = rows_and_ends(20)
    with torch.no_grad():
        hidden = policy.lm.model(rows.input_ids, position_ids=rows.position_ids).last_hidden_state.flatten(0, 1)
        places = rows.flat[ends]
        logits = hidden[places - 1].double() @ policy.lm.lm_head.weight.double().T
        exact = logits.log_softmax(-1).gather(-1, rows.input_ids.view(-1)[places][:, None]).squeeze(-1)
    assert_close(logprobs, exact, SMALL.hidden_size)
    plain, rounded, others = logprobs_and_gradients(folders, torch.bfloat16, "model")
    assert (rounded.double() - exact).abs().max() > 10 * (logprobs.double() - exact).abs().max()
    assert {name: p.dtype for name, p in policy.named_parameters()} == {
        name: p.dtype for name, p in plain.named_parameters()
    }
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.bfloat16
        assert_close(gradient, others[name], SMALL.hidden_size, torch.bfloat16)


def test_in_float32_the_head_changes_nothing(folders):
    (_, logprobs, gradients), (_, same, others) = (
        logprobs_and_gradients(folders, torch.float32, head) for head in ("float32", "model")
    )
    assert torch.equal(logprobs, same)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, others[name], 500)


def test_tied_weights_stay_tied_and_another_head_is_refused(folders):
    lm = PolicyModel.load(folders / "lm", torch.bfloat16).lm
    lm.lm_head.weight = lm.model.embed_tokens.weight
    compute_logits_in_float32(lm)
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    assert lm.lm_head(torch.randn(2, 3, 64).bfloat16()).dtype == torch.float32
    lm.lm_head = torch.nn.Identity()
    with pytest.raises(CastorError, match="the head is a Identity, and only a linear one"):
        compute_logits_in_float32(lm)
