"""Packed rows through a varlen kernel: the numbers and gradients of the mask, or the mask.

torch's kernel needs a GPU. Here a plain loop over the sequences takes its place, called as it is; and that of CPUs.
"""

import inspect
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaModel

from castor.config.training import LoRA
from castor.models.attention import UnsupportedAttention, _attention, place, sequence_by_sequence, use_kernel
from castor.models.lora import add_adapters
from castor.models.moderation import ModerationInfo, ModerationModel
from castor.models.policy import PolicyModel
from castor.models.score import ScoreInfo, ScoreModel
from castor.packing import pack_rows

SIZE = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": 1, "initializer_range": 0.3,
}  # fmt: skip
TAKEN = {
    "llama": ("llama", {}),
    "one key head": ("llama", {"num_key_value_heads": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": None}),
    "phi": ("phi", {}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("gpt_neox", {}),
}
LEFT = {
    "window": ("mistral", {"sliding_window": 3}),
    "window of some layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "capped scores": ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}),
    "sinks": ("gpt_oss", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 64}),
    "heads of 12": ("qwen3", {"head_dim": 12}),
    "no packing": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
    "attention of its own": ("bloom", {"n_layer": 1, "n_head": 4}),
}
LENGTHS = torch.tensor([7, 5, 1, 9, 4, 12, 2])


def one_by_one(query, key, value, cuts, key_cuts, longest, longest_key, *, scale, window_size, enable_gqa):
    """Of more keys than queries, the queries are those of the last tokens."""
    kind = {"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa}
    return looped(query, key, value, cuts, key_cuts, longest, longest_key, late=True, **kind)


def forgetful(*given, **kind):
    """A kernel that takes its queries for those of the first tokens."""
    return looped(*given, **kind, late=False)


def looped(query, key, value, cuts, key_cuts, longest, longest_key, *, scale, window_size, enable_gqa, late):
    assert cuts.dtype == key_cuts.dtype == torch.int32
    assert (longest, longest_key) == (int(cuts.diff().max()), int(key_cuts.diff().max()))
    assert window_size == (-1, 0)  # causal
    assert (query.shape[1] != key.shape[1]) == enable_gqa
    assert int(cuts[0]) == int(key_cuts[0]) == 0
    assert int(cuts[-1]) == len(query)
    assert int(key_cuts[-1]) == len(key) == len(value)
    parts = []
    for (start, end), (first, last) in zip(pairwise(cuts.tolist()), pairwise(key_cuts.tolist()), strict=True):
        q, k, v = (part.transpose(0, 1)[None] for part in (query[start:end], key[first:last], value[first:last]))
        more = last - first - (end - start) if late else 0
        mask = torch.ones(end - start, last - first, dtype=torch.bool).tril(more)
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def all_as_one(query, key, value, cuts, key_cuts, longest, longest_key, **kwargs):
    """A kernel that sees where nothing begins."""
    whole = torch.tensor([0, len(query)], dtype=torch.int32)
    return one_by_one(query, key, value, whole, whole, len(query), len(query), **kwargs)


def policy(name, dtype=torch.float64):
    kind, own = (TAKEN | LEFT)[name]
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(SIZE | own)))
    return PolicyModel(lm.eval().to(dtype))


def packed(lengths=LENGTHS):
    lengths = lengths.long()
    tokens = torch.randint(2, 60, (int(lengths.sum()),), generator=torch.Generator().manual_seed(1))
    inner = torch.ones(len(tokens), dtype=torch.bool)
    inner[lengths.cumsum(0) - lengths] = False
    return pack_rows(tokens.numpy(), lengths.numpy(), 16), inner.nonzero()[:, 0]


def outcome(model, rows, positions):
    model.zero_grad()
    output = model(rows, positions)
    (output * torch.linspace(-1, 2, len(positions))).sum().backward()
    return output.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def implementation(model):
    return model.lm.config._attn_implementation


@pytest.mark.parametrize("name", TAKEN)
def test_the_kernel_gives_the_numbers_and_gradients_of_the_mask(name):
    model = policy(name)
    expected, gradients = outcome(model, *packed())
    assert use_kernel(model, one_by_one)
    assert (model.packing, implementation(model)) == ("shared", "castor_one_by_one")
    actual, found = outcome(model, *packed())
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, gradients, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LEFT)
def test_what_the_kernel_lacks_keeps_its_attention(name):
    model = policy(name, torch.float32)  # experts have no kernel for float64
    before, packing = implementation(model), model.packing
    expected = model(*packed())
    assert not use_kernel(model, one_by_one)
    assert (model.packing, implementation(model)) == (packing, before)
    assert torch.equal(model(*packed()), expected)


def test_a_kernel_that_lets_sequences_see_each_other_is_left():
    model = policy("llama")
    expected = model(*packed())
    assert not use_kernel(model, all_as_one)
    assert (model.packing, implementation(model)) == ("masked", "sdpa")
    assert torch.equal(model(*packed()), expected)


def test_a_kernel_that_takes_no_more_keys_than_queries_shares_nothing():
    model = policy("llama")
    assert use_kernel(model, forgetful)
    assert model.packing == "varlen"


def grouped(count=4):
    """Responses to three prompts, one of which is sampled twice, and where the response tokens are."""
    generator, sequences, responses, taken = torch.Generator().manual_seed(2), [], [], 0
    for length in (20, 9, 13):
        prompt = torch.randint(2, 60, (length,), generator=generator)
        for own in torch.randint(1, 12, (count,), generator=generator).tolist():
            sequences.append(torch.cat([prompt, torch.randint(2, 60, (own,), generator=generator)]))
            responses.append(torch.arange(taken + length, taken + length + own))
            taken += length + own
    sequences.append(sequences[0])
    rows = pack_rows(torch.cat(sequences).numpy(), torch.tensor([len(each) for each in sequences]).numpy(), 64)
    return rows, torch.cat([*responses, taken + torch.arange(20, len(sequences[0]))])


@pytest.mark.parametrize("kernel", [one_by_one, sequence_by_sequence])
@pytest.mark.parametrize("name", TAKEN)
def test_what_sequences_begin_with_is_computed_once_and_changes_no_number(name, kernel):
    model, sizes = policy(name), []
    expected, gradients = outcome(model, *grouped())
    assert use_kernel(model, kernel)
    next(each for each in model.modules() if isinstance(each, torch.nn.Embedding)).register_forward_pre_hook(
        lambda _, given: sizes.append(given[0].numel())
    )
    rows, positions = grouped()
    actual, found = outcome(model, rows, positions)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, gradients, rtol=0, atol=1e-5)  # of sums; log-probabilities are float32
    assert sizes == [len(rows.shared.own)]
    assert len(rows.shared.own) <= 20 + 9 + 13 + len(positions)


def test_with_adapters_and_recomputed_activations():
    model = policy("llama")
    add_adapters(model, LoRA(rank=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    expected, gradients = outcome(model, *packed())
    assert use_kernel(model, one_by_one)
    model.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    actual, found = outcome(model.train(), *packed())
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, gradients, rtol=0, atol=1e-6)


def test_score_and_moderation_models_take_it_too():
    rows, ends = packed()[0], LENGTHS.cumsum(0) - 1
    backbone = LlamaModel(LlamaConfig(**SIZE)).eval()
    graded = ModerationModel(backbone, ModerationInfo.fresh("pku", "pair", severity=True))
    for model in (ScoreModel(backbone, ScoreInfo("reward")), graded):
        backbone.set_attn_implementation("sdpa")
        expected = model(rows, ends)
        assert use_kernel(model, one_by_one)
        torch.testing.assert_close(model(rows, ends), expected, rtol=1e-4, atol=1e-4)
        assert not torch.equal(model(rows, ends), expected)  # it is the kernel that was asked


def test_the_choice_is_not_saved(tmp_path):
    model = policy("llama", torch.float32)
    assert use_kernel(model, one_by_one)
    model.lm.save_pretrained(tmp_path)
    assert "castor" not in (tmp_path / "config.json").read_text()
    assert AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", [*TAKEN, *LEFT])
@pytest.mark.parametrize("lengths", [LENGTHS, torch.tensor([5] * 4), torch.tensor([6]), torch.tensor([])], ids=str)
def test_on_a_cpu_every_sequence_is_attended_to_alone_or_the_mask_stays(name, lengths):
    model = policy(name, torch.float32 if name in LEFT else torch.float64)
    before = implementation(model)
    expected, gradients = outcome(model, *packed(lengths))
    assert place(model, torch.device("cpu")) is model
    kernel = "castor_sequence_by_sequence" if name in TAKEN else before
    assert implementation(model) == kernel
    actual, found = outcome(model, *packed(lengths))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, gradients, rtol=0, atol=1e-6)


def test_the_kernel_of_cpus_gives_the_numbers_of_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    cuts = torch.cat([torch.zeros(1), LENGTHS.repeat(2).cumsum(0)]).int()
    query, key, value = (torch.randn(int(cuts[-1]), heads, 8, generator=generator) for heads in (4, 2, 2))
    kind = {"scale": 0.4, "window_size": (-1, 0), "enable_gqa": True}
    given = query, key, value, cuts, cuts, int(LENGTHS.max()), int(LENGTHS.max())
    torch.testing.assert_close(sequence_by_sequence(*given, **kind), one_by_one(*given, **kind))
    counts = (1 + LENGTHS.repeat(2) // 3).tolist()  # fewer queries than keys
    last = torch.cat([torch.arange(end - count, end) for count, end in zip(counts, cuts[1:].tolist(), strict=True)])
    fewer = torch.tensor([0, *counts]).cumsum(0).int()
    given = query[last], key, value, fewer, cuts, max(counts), int(LENGTHS.max())
    last_of_all = one_by_one(query, key, value, cuts, cuts, int(LENGTHS.max()), int(LENGTHS.max()), **kind)[last]
    torch.testing.assert_close(sequence_by_sequence(*given, **kind), last_of_all)
    torch.testing.assert_close(one_by_one(*given, **kind), last_of_all)
    halves = [part.bfloat16() for part in given[:3]]  # which are computed in float32
    found = sequence_by_sequence(*halves, *given[3:], **kind)
    assert torch.equal(found, sequence_by_sequence(*(part.float() for part in halves), *given[3:], **kind).bfloat16())


@pytest.mark.parametrize(
    "asked", [{"sliding_window": 4}, {"softcap": 30.0}, {"s_aux": torch.ones(2)}, {"position_bias": torch.ones(2)},
              {"dropout": 0.1}, {"is_causal": False}, {"cu_seq_lens_q": None}, {"attention_mask": torch.ones(2)},
              {"of_a_later_version": 1}],
)  # fmt: skip
def test_a_layer_that_asks_for_more_is_refused(asked):
    heads = torch.zeros(1, 2, 3, 8)
    usual = {"attention_mask": None, "cu_seq_lens_q": torch.tensor([0, 3], dtype=torch.int32), "max_length_q": 3}
    attention = _attention(one_by_one)
    attention(torch.nn.Module(), heads, heads, heads, **usual, position_ids=torch.arange(3), sliding_window=None)
    with pytest.raises(UnsupportedAttention):
        attention(torch.nn.Module(), heads, heads, heads, **(usual | asked))


def test_a_plain_call_of_a_model_whose_rows_go_through_the_kernel_is_refused():
    """Padding could not be told from tokens, nor sequences from each other."""
    model = policy("llama")
    assert use_kernel(model, one_by_one)
    ids = torch.arange(6)[None]
    with pytest.raises(UnsupportedAttention):
        model.lm(ids)
    with pytest.raises(UnsupportedAttention):
        model.lm(ids, attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1]]))


def test_torchs_kernel_is_called_as_it_wants_to_be():
    """Its arguments, and on a device without memory the shapes that it gives and the gradients that it takes."""
    from torch.nn.attention.varlen import varlen_attn

    given = inspect.signature(one_by_one).parameters
    inspect.signature(varlen_attn).bind(*range(7), **{n: 0 for n, p in given.items() if p.kind is p.KEYWORD_ONLY})
    kind = {"device": "meta", "dtype": torch.bfloat16, "requires_grad": True}
    query, key, value = (torch.empty(2, heads, 8, 64, **kind) for heads in (4, 2, 2))
    cuts = torch.empty(6, dtype=torch.int32, device="meta")
    output, _ = _attention(varlen_attn)(
        torch.nn.Module(), query, key, value, None, scaling=0.125, cu_seq_lens_q=cuts, max_length_q=5
    )
    assert output.shape == (2, 8, 4, 64)
    output.sum().backward()
    less = torch.empty(10, 4, 64, device="meta", dtype=torch.bfloat16)
    whole = [part.detach().transpose(1, 2).flatten(0, 1) for part in (key, value)]
    assert varlen_attn(less, *whole, cuts, cuts, 2, 5, window_size=(-1, 0), enable_gqa=True).shape == less.shape
    assert [part.grad.shape for part in (query, key, value)] == [part.shape for part in (query, key, value)]
