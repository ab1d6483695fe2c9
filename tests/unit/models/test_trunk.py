"""A critic goes on from what its judge has computed below the layers that are trained: the same numbers, gradients."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from castor.models import trunk
from castor.models.attention import use_kernel
from castor.models.last_layers import train_last_layers
from castor.models.score import ScoreInfo, ScoreModel, nothing_around
from castor.models.trunk import Trunk, goes_on
from tests.unit.models.test_attention import LENGTHS, SIZE, one_by_one, outcome, packed, policy

GOES_ON = ["llama", "one key head", "qwen3", "mistral", "phi", "gpt_neox", "window", "capped scores"]
DOES_NOT = ["gpt2", "no packing"]  # they add positions to embeddings


def judge_and_critic(layers=3, trained=1, kernel=None):
    """The critic is of the judge's weights, with another head."""
    torch.manual_seed(0)
    judge = ScoreModel(LlamaModel(LlamaConfig(**(SIZE | {"num_hidden_layers": layers}))).double(), ScoreInfo("cost"))
    critic = ScoreModel(copy.deepcopy(judge.backbone), ScoreInfo("critic"))
    if kernel is not None:
        assert use_kernel(judge, kernel)
        assert use_kernel(critic, kernel)
    train_last_layers(critic, trained)
    kept = Trunk(trained)
    judge.around, critic.around = kept.note, kept.use
    return judge.eval().requires_grad_(False), critic, kept


def calls_of(module):
    made = []
    module.register_forward_hook(lambda *_: made.append(1))
    return made


@pytest.mark.parametrize("name", GOES_ON)
def test_architectures_that_go_on(name):
    model = policy(name)
    assert goes_on(model.lm.base_model, model.packing, 1)
    assert not goes_on(model.lm.base_model, model.packing, 0)
    assert not goes_on(model.lm.base_model, model.packing, 2)  # nothing is below


@pytest.mark.parametrize("name", DOES_NOT)
def test_architectures_that_do_not(name):
    model = policy(name)
    assert not goes_on(model.lm.base_model, model.packing, 1)


@pytest.mark.parametrize("trained", [1, 2])
@pytest.mark.parametrize("kernel", [None, one_by_one])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_values_and_gradients_are_those_of_the_whole_model(trained, kernel, checkpointed):
    judge, critic, kept = judge_and_critic(trained=trained, kernel=kernel)
    if checkpointed:
        critic.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows, positions = packed()
    first, last = (calls_of(critic.backbone.layers[i].self_attn) for i in (0, 2))
    critic.around = nothing_around
    expected, gradients = outcome(critic, rows, positions)
    critic.around = kept.use
    judge(rows, LENGTHS.cumsum(0) - 1)
    before = len(first), len(last)
    actual, found = outcome(critic, rows, positions)
    assert (kept.used, len(first) - before[0]) == (1, 0)
    assert len(last) > before[1]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(found, gradients, rtol=0, atol=1e-6)  # a head of float32


def test_texts_are_found_in_whatever_batch_they_come():
    judge, critic, kept = judge_and_critic()
    lengths = torch.tensor([7, 5, 9])
    rows, _ = packed(lengths)
    judge(rows, lengths.cumsum(0) - 1)
    alone, inside = packed(lengths[:1])  # its tokens are the first ones of those before
    with_it = outcome(critic, alone, inside)
    assert kept.used == 1
    critic.around = nothing_around
    torch.testing.assert_close(with_it, outcome(critic, alone, inside), rtol=0, atol=1e-6)
    critic.around = kept.use
    outcome(critic, *packed(torch.tensor([7, 6])))  # the second is another text
    assert kept.used == 1


def test_no_text_is_none_that_is_known():
    judge, critic, kept = judge_and_critic()
    rows, positions = packed(LENGTHS[:0])
    assert len(judge(rows, positions)) == 0
    assert len(critic(rows, positions)) == 0
    assert (kept.bytes, kept.used) == (0, 0)


def test_what_is_old_is_forgotten_and_what_has_no_room_is_not_kept(monkeypatch):
    judge, critic, kept = judge_and_critic()
    kept.steps = 2
    rows, positions = packed()
    for _ in range(2):  # the second time it is as new as can be
        judge(rows, LENGTHS.cumsum(0) - 1)
        assert kept.bytes == int(LENGTHS.sum()) * SIZE["hidden_size"] * 8
        kept.end_step()
    assert kept.bytes
    kept.end_step()
    assert kept.bytes == 0
    monkeypatch.setattr(trunk, "MOST", 12 * SIZE["hidden_size"] * 8)
    judge(rows, LENGTHS.cumsum(0) - 1)
    assert kept.bytes == 12 * SIZE["hidden_size"] * 8  # the first two of 7 and 5 tokens
    outcome(critic, rows, positions)
    assert kept.used == 0
