"""The last layers alone are trained: the gradients that they have in the whole model, and none below them."""

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from castor.io.errors import CastorError
from castor.models.last_layers import train_last_layers
from castor.models.moderation import ModerationInfo, ModerationModel
from castor.models.score import ScoreInfo, ScoreModel
from tests.unit.models.test_attention import LENGTHS, SIZE, outcome, packed, policy

LAST = {  # what is trained of a policy whose last layer is: beginnings of names
    "llama": ("lm.model.layers.1.", "lm.model.norm."),
    "qwen3": ("lm.model.layers.1.", "lm.model.norm."),
    "gpt2": ("lm.transformer.h.1.", "lm.transformer.ln_f."),
    "gpt_neox": ("lm.gpt_neox.layers.1.", "lm.gpt_neox.final_layer_norm."),
    "no packing": ("lm.model.decoder.layers.1.",),  # OPT has its norm before its layers
}


def backbone():
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(**SIZE))


@pytest.mark.parametrize("name", LAST)
def test_the_last_layer_has_the_gradients_of_the_whole_model_and_nothing_else_has(name):
    model = policy(name)
    expected, gradients = outcome(model, *packed())
    train_last_layers(model, 1)
    actual, found = outcome(model, *packed())
    assert torch.equal(actual, expected)
    assert found
    assert found.keys() == {key for key in gradients if key.startswith(LAST[name])}
    torch.testing.assert_close(found, {key: gradients[key] for key in found}, rtol=0, atol=1e-12)


def test_all_layers_leave_the_vocabulary_frozen():
    model = policy("llama")
    train_last_layers(model, 2)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"lm.model.embed_tokens.weight", "lm.lm_head.weight"}


def test_the_backward_pass_ends_where_the_frozen_layers_begin():
    model, made = ScoreModel(backbone(), ScoreInfo("critic")), []
    train_last_layers(model, 1)
    for layer in model.backbone.layers:
        layer.register_forward_hook(lambda _, given, out: made.append(out.requires_grad))
    outcome(model, packed()[0], LENGTHS.cumsum(0) - 1)
    assert made == [False, True]


@pytest.mark.parametrize(("count", "trained"), [(0, ()), (1, ("backbone.layers.1.", "backbone.norm."))])
def test_heads_are_trained(count, trained):
    for model in (
        ScoreModel(backbone(), ScoreInfo("cost")),
        ModerationModel(backbone(), ModerationInfo.fresh("beavertails", "pair", severity=True)),
    ):
        train_last_layers(model, count)
        heads = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
        assert heads
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (name in heads or name.startswith(trained)), name


def test_what_cannot_be_is_said():
    with pytest.raises(CastorError, match="has 2 layers: lower engine"):
        train_last_layers(policy("llama"), 3)
    with pytest.raises(CastorError, match="leaves nothing of a language model to train"):
        train_last_layers(policy("llama"), 0)
    strange = policy("llama")
    strange.lm.config.num_hidden_layers = 7
    with pytest.raises(CastorError, match="the layers of this architecture are not known"):
        train_last_layers(strange, 1)
