"""Adapters: what is trained, switched off, merged, saved."""

import copy

import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, LlamaConfig, LlamaForCausalLM, LlamaModel

from castor.config.training import LoRA
from castor.io.errors import CastorError
from castor.models.lora import (
    adapter_weights,
    add_adapters,
    base_name,
    is_factor,
    merge,
    save_adapter,
    with_modules,
    without_adapters,
)
from castor.models.policy import PolicyModel
from castor.models.score import ScoreInfo, ScoreModel
from tests.numerics import TINY_MODELS, assert_close

LLAMA = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
GPT2 = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)
IDS = torch.arange(20)[None]


def make(kind):
    torch.manual_seed(0)
    if kind == "gpt2":
        return PolicyModel(GPT2LMHeadModel(GPT2).eval())
    return PolicyModel(LlamaForCausalLM(LLAMA).eval())


@pytest.fixture(params=["llama", "gpt2"])
def policy(request):
    return make(request.param), make(request.param).lm


def trained(model):
    """Give the adapters weights as if they had been trained."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return dict(model.named_parameters())


def test_adapters_start_as_nothing_and_can_be_switched_off(policy):
    model, plain = policy
    add_adapters(model, LoRA(rank=2))
    expected = plain(IDS).logits
    assert torch.equal(model.lm(IDS).logits, expected)
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learned
    assert all(".lora_" in name for name in learned)
    trained(model)
    assert (model.lm(IDS).logits - expected).abs().max() > 0.01
    with without_adapters(model):
        assert torch.equal(model.lm(IDS).logits, expected)
        assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == learned
    assert (model.lm(IDS).logits - expected).abs().max() > 0.01


def test_merged_weights_give_the_adapted_model(policy, tmp_path):
    model, plain = policy
    config = LoRA(rank=3, alpha=5.0)
    add_adapters(model, config)
    weights = trained(model)
    merged = {name.removeprefix("lm."): tensor for name, tensor in merge(model, weights.items(), weights)}
    assert merged.keys() == dict(plain.named_parameters()).keys()
    save_adapter(tmp_path / "adapter", model, weights, config, "the base")
    loaded = PeftModel.from_pretrained(
        make("gpt2" if isinstance(plain, GPT2LMHeadModel) else "llama").lm, tmp_path / "adapter"
    )
    expected = model.lm(IDS).logits
    assert_close(loaded.eval()(IDS).logits, expected, TINY_MODELS)
    plain.load_state_dict(merged, strict=False)  # a tied head has no entry of its own
    assert_close(plain(IDS).logits, expected, TINY_MODELS)


@pytest.mark.parametrize("backbone", [LlamaModel(LLAMA), GPT2Model(GPT2)], ids=["llama", "gpt2"])
def test_a_head_beside_the_backbone_stays_trainable(backbone):
    model = ScoreModel(backbone, ScoreInfo("reward"))
    names = dict(model.named_parameters()).keys()
    add_adapters(model, LoRA(rank=2))
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in learned if ".lora_" not in name} == {"score_head.weight", "score_head.bias"}
    assert dict(merge(model, model.named_parameters(), dict(model.named_parameters()))).keys() == names


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_travels_is_all_there_is_to_add(kind):
    model = make(kind)
    add_adapters(model, LoRA(rank=2, alpha=3.0))
    weights = trained(model)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    merged = dict(merge(model, weights.items(), weights))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.items())
    sent = dict(adapter_weights(model, ((name, w) for name, w in weights.items() if is_factor(name))))
    adapted = {name.removesuffix(".base_layer.weight") for name in weights if name.endswith(".base_layer.weight")}
    assert sent.keys() == {f"{name.removeprefix('lm.')}.lora_{which}.weight" for name in adapted for which in "AB"}
    assert {base_name(name) for name in weights if not is_factor(name)} == merged.keys()
    for layer in adapted:
        a, b = (sent[f"{layer.removeprefix('lm.')}.lora_{which}.weight"] for which in "AB")
        weight = weights[f"{layer}.base_layer.weight"]
        assert_close(weight + (b @ a).T if kind == "gpt2" else weight + b @ a, merged[f"{layer}.weight"], 3)


def test_null_stands_for_the_layers_that_get_an_adapter(tiny_models):
    model = PolicyModel.load(tiny_models.policy, torch.float32)
    add_adapters(model, LoRA())
    adapted = {
        name.partition(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if is_factor(name)
    }
    assert set(with_modules(LoRA(), tiny_models.policy).target_modules or ()) == adapted
    named = LoRA(target_modules=["q_proj"])
    assert with_modules(named, "no model") is named


def test_a_layer_that_shares_its_weights_cannot_have_an_adapter():
    tied = copy.deepcopy(LLAMA)
    tied.tie_word_embeddings = True
    with pytest.raises(CastorError, match="lm_head shares its weights with another layer"):
        add_adapters(PolicyModel(LlamaForCausalLM(tied)), LoRA(target_modules=["lm_head"]))


@torch.no_grad()
def test_merging_adds_in_float32_and_keeps_the_type():
    model = PolicyModel(LlamaForCausalLM(LLAMA)).bfloat16()
    add_adapters(model, LoRA(rank=2, alpha=3.0))
    weights = trained(model)
    for name, tensor in merge(model, weights.items(), weights):
        owner, _, _ = name.rpartition(".weight")
        if f"{owner}.base_layer.weight" not in weights:
            assert tensor is weights[name]
            continue
        base, a, b = (
            weights[f"{owner}.{end}.weight"].double() for end in ("base_layer", "lora_A.default", "lora_B.default")
        )
        expected = base + 1.5 * b @ a
        assert tensor.dtype == torch.bfloat16
        assert ((tensor.double() - expected).abs() <= expected.abs() * 2**-8 + 1e-6).all()  # rounded once


@pytest.mark.parametrize("names", [["nope"], ["embed_tokens"]])
def test_a_target_without_a_linear_layer_is_an_error(names):
    with pytest.raises(CastorError, match=r"lora.target_modules: .*down_proj, gate_proj"):
        add_adapters(make("llama"), LoRA(target_modules=names))
