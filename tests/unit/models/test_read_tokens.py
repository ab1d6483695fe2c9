"""The last layer computes for the tokens that are read alone: the same numbers and gradients, or all as before."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from castor.models.read_tokens import _parts, computed_at, spares_tokens
from castor.models.score import ScoreInfo, ScoreModel
from tests.unit.models.test_attention import LEFT, LENGTHS, SIZE, TAKEN, outcome, packed, policy

SPARING = ["llama", "one key head", "qwen3", "mistral", "phi", "gpt2", "gpt_neox", "window", "capped scores"]


def read():
    """The last two tokens of every sequence that has three: where they lie in the flat sequences."""
    ends = LENGTHS.cumsum(0)
    return torch.cat([torch.arange(end - 2, end) for end, length in zip(ends, LENGTHS, strict=True) if length > 2])


def tokens_of(module):
    """How many tokens each of its calls computes, in a list that grows."""
    seen, compute = list[int](), module.forward

    def counting(hidden):
        seen.append(hidden.flatten(0, -2).shape[0])
        return compute(hidden)

    module.forward = counting
    return seen


@pytest.mark.parametrize("name", SPARING)
def test_what_is_read_and_its_gradients_are_the_same(name):
    model, (rows, _) = policy(name), packed()
    assert model.spares
    sparing = outcome(model, rows, read())
    model.spares = False
    whole = outcome(model, rows, read())
    torch.testing.assert_close(sparing, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(TAKEN | LEFT) - set(SPARING) - {"window of some layers", "heads of 12"}))
def test_other_last_layers_compute_all_tokens(name):
    assert not policy(name, torch.float32).spares


def test_no_other_token_goes_through_its_parts():
    model, (rows, _) = policy("llama"), packed()
    mlp, queries, output = _parts(model.lm.model)
    seen = tokens_of(mlp.gate_proj), tokens_of(queries), tokens_of(output)
    outcome(model, rows, read())
    outcome(model, rows, read()[:0])  # no token is read, and every parameter gets its gradient
    assert seen == ([len(read()), rows.input_ids.numel()],) * 3


def test_a_score_model_computes_one_token_of_a_sequence():
    torch.manual_seed(0)
    model = ScoreModel(LlamaModel(LlamaConfig(**SIZE)).double(), ScoreInfo("cost")).eval()
    rows, _ = packed()
    ends = LENGTHS.cumsum(0) - 1
    seen = tokens_of(_parts(model.backbone)[0].gate_proj)
    sparing = outcome(model, rows, ends)
    model.spares = False
    torch.testing.assert_close(sparing, outcome(model, rows, ends), rtol=0, atol=1e-6)  # a head of float32
    assert seen == [len(ends), rows.input_ids.numel()]


def test_gradient_checkpointing_computes_all_tokens():
    model, (rows, _) = policy("llama"), packed()
    whole = outcome(model, rows, read())
    model.train()
    model.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    seen = tokens_of(_parts(model.lm.model)[0].gate_proj)
    torch.testing.assert_close(outcome(model, rows, read()), whole, rtol=0, atol=1e-12)
    assert seen == [rows.input_ids.numel()] * 2


def test_an_mlp_that_mixes_tokens_is_left_alone():
    class Mixing(nn.Module):
        def forward(self, hidden):
            return hidden - hidden.mean(1, keepdim=True)

    backbone = LlamaModel(LlamaConfig(**SIZE)).eval()
    assert spares_tokens(backbone, "masked")
    backbone.layers[-1].mlp = Mixing()
    assert not spares_tokens(backbone, "masked")


def test_the_module_is_as_before_whatever_happens():
    backbone = LlamaModel(LlamaConfig(**SIZE)).eval()
    mlp = backbone.layers[-1].mlp

    def fail():
        with computed_at(backbone, torch.tensor([1]), spares=True):
            assert "forward" in vars(mlp)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "forward" not in vars(mlp)
