"""Log-probabilities of a policy a chunk at a time: the numbers of all at once, without their memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from castor.config.training import LOGITS, Engine, LoRA
from castor.models.lora import add_adapters
from castor.models.policy import PolicyModel
from castor.packing import pack_rows

SIZE = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None, "initializer_range": 0.3,
}  # fmt: skip
PLAIN = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "phi": ("phi", {}),  # its output layer has a bias
    "opt": ("opt", {"ffn_dim": 24, "word_embed_proj_dim": 16, "init_std": 0.3, "pad_token_id": 1}),  # not packed
}
CHANGED = {
    "cohere": ("cohere", {"logit_scale": 0.5}),
    "granite": ("granite", {"logits_scaling": 2.0}),
    "gemma2": ("gemma2", {"head_dim": 4, "query_pre_attn_scalar": 4, "final_logit_softcapping": 30.0}),
}
LENGTHS = [9, 4, 12, 7, 1, 6]


def language_model(name, dtype=torch.float64, **options):
    kind, own = (PLAIN | CHANGED)[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(SIZE | own | options))).eval().to(dtype)


def policies(name, chunk, dtype=torch.float64, **options):
    """The same policy, one that makes all logits at once and one with chunks."""
    return [
        PolicyModel(language_model(name, dtype, **options), engine=Engine(logits_chunk_tokens=size))
        for size in (None, chunk)
    ]


def packed(lengths, vocabulary=60, pack_length=16):
    """Rows, and the positions of all tokens but each sequence's first."""
    lengths = torch.tensor(lengths)
    tokens = torch.randint(vocabulary, (int(lengths.sum()),), generator=torch.Generator().manual_seed(1))
    first = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)[:-1]])
    inner = torch.ones(len(tokens), dtype=torch.bool)
    inner[first] = False
    return pack_rows(tokens.numpy(), lengths.numpy(), pack_length), inner.nonzero()[:, 0]


def outcome(policy, rows, positions, temperature, with_entropy):
    """Values, and every parameter's gradient of their sum with uneven weights."""
    policy.zero_grad()
    output = policy(rows, positions, temperature, with_entropy)
    (output * torch.linspace(-1, 2, output.numel()).view(output.shape)).sum().backward()
    return output.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_chunks_change_no_number_and_no_gradient(name, with_entropy):
    whole, parts = policies(name, chunk=4)
    assert parts.divisible
    expected, gradients = outcome(whole, *packed(LENGTHS), 0.7, with_entropy)
    actual, found = outcome(parts, *packed(LENGTHS), 0.7, with_entropy)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert gradients.keys() == found.keys()
    assert any("embed" in key or "wte" in key for key in found)
    torch.testing.assert_close(found, gradients, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def pair():
    return policies("llama", chunk=1)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 14), min_size=1, max_size=6), st.integers(1, 30), st.integers(1, 40), st.booleans())
def test_chunks_of_any_size_over_any_lengths(pair, lengths, pack_length, chunk, with_entropy):
    whole, parts = pair
    rows, positions = packed(lengths, pack_length=pack_length)
    parts.chunk_tokens = chunk
    expected, gradients = outcome(whole, rows, positions, 1.0, with_entropy)
    actual, found = outcome(parts, rows, positions, 1.0, with_entropy)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, gradients, rtol=0, atol=1e-6)


def test_an_empty_micro_batch_reaches_every_parameter():
    _, policy = policies("llama", chunk=1)
    rows, positions = packed(LENGTHS)
    output, gradients = outcome(policy, rows, positions[:0], 1.0, True)
    assert output.shape == (2, 0)
    rows = pack_rows(torch.empty(0).numpy(), torch.empty(0).numpy(), 8)
    output, again = outcome(policy, rows, positions[:0], 1.0, False)
    assert output.shape == (0,)
    assert gradients.keys() == again.keys() == dict(policy.named_parameters()).keys()
    assert not any(gradient.any() for gradient in (*gradients.values(), *again.values()))


@pytest.mark.parametrize("modules", [None, ["lm_head", "q_proj"]])
def test_adapters_get_the_gradients_of_all_at_once(modules):
    """An output layer with an adapter is several layers, which is not divided."""
    whole, parts = policies("llama", chunk=4)
    results = []
    for policy in (whole, parts):
        torch.manual_seed(1)
        add_adapters(policy, LoRA(rank=2, target_modules=modules))
        for parameter_name, parameter in policy.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        results.append(outcome(policy, *packed(LENGTHS), 1.0, True))
    (expected, gradients), (actual, found) = results
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert all(".lora_" in name for name in found)
    assert any(gradient.any() for gradient in found.values())
    torch.testing.assert_close(found, gradients, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CHANGED)
def test_a_model_that_changes_its_logits_is_not_divided(name, dtype):
    """Also where its logits are too small for the change to show in their type."""
    _, policy = policies(name, chunk=4, dtype=dtype, initializer_range=1e-3)
    assert not policy.divisible
    rows, positions = packed([9, 4], pack_length=9)
    with torch.no_grad():
        actual = policy(rows, positions)
        tokens = rows.input_ids.view(-1)[rows.flat].split([9, 4])
        logits = [policy.lm(input_ids=part[None]).logits[0, :-1].float().log_softmax(-1) for part in tokens]
    expected = torch.cat([each.gather(1, part[1:, None])[:, 0] for each, part in zip(logits, tokens, strict=True)])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("chunk", [None, 1])
def test_log_probabilities_and_gradients_are_those_of_the_models_own_logits(chunk):
    rows, positions = packed(LENGTHS)
    target = rows.flat[positions]
    _, policy = policies("llama", chunk)
    output, gradients = outcome(policy, rows, positions, 0.7, True)
    policy.zero_grad()
    logits = policy.lm(input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False).logits
    distribution = torch.log_softmax(logits.flatten(0, 1)[target - 1] / 0.7, -1)
    logprobs = distribution.gather(-1, rows.input_ids.view(-1)[target, None]).squeeze(-1)
    plain = torch.stack([logprobs, -(distribution.exp() * distribution).sum(-1)])
    (plain * torch.linspace(-1, 2, plain.numel()).view(plain.shape)).sum().backward()
    torch.testing.assert_close(output, plain.float(), rtol=1e-6, atol=1e-6)
    expected = {name: parameter.grad for name, parameter in policy.named_parameters()}
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-6)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_larger_than_the_logits_of_a_chunk(dtype):
    vocabulary, chunk = 4_000, 10
    whole, parts = policies("llama", chunk, dtype, vocab_size=vocabulary, hidden_size=8, num_key_value_heads=4)
    rows, positions = packed([30] * 8, vocabulary, pack_length=60)
    most = {}
    for name, policy in (("whole", whole), ("parts", parts)):
        with Largest() as largest:
            outcome(policy, rows, positions, 1.0, True)
        most[name] = largest.elements
    assert most["whole"] == len(positions) * vocabulary  # not of the prompts' tokens
    assert most["parts"] == chunk * vocabulary > 8 * vocabulary  # the weights of the layer are smaller


def test_the_size_of_a_chunk_follows_from_the_vocabulary():
    assert Engine().chunk_tokens(128_256) == 1_046
    assert Engine().chunk_tokens(1_000) * 1_000 <= LOGITS
    assert Engine().chunk_tokens(LOGITS + 1) == 1
    assert Engine(logits_chunk_tokens=7).chunk_tokens(128_256) == 7
    assert "logits_chunk_tokens" not in Engine(logits_chunk_tokens=7).recipe()
