"""Which attention functions keep the sequences of packed rows apart: within a row, and from row to row."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from castor.models.backbone import isolates_sequences

SIZE = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 32, "initializer_range": 0.5, "pad_token_id": None,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def one_row_only(module, query, key, value, attention_mask, **kwargs):
    """As FlashAttention-2 in transformers: packing is seen in a single row, and with more of them there is none."""
    return sdpa_attention_forward(module, query, key, value, attention_mask if len(query) == 1 else None, **kwargs)


def cuts_of_the_first_row(module, query, key, value, attention_mask, **kwargs):
    return sdpa_attention_forward(module, query, key, value, attention_mask[:1].expand_as(attention_mask), **kwargs)


def row_above(module, query, key, value, attention_mask, **kwargs):
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output + 0.1 * output.roll(1, 0), weights


def sees_what_follows(module, query, key, value, attention_mask, **kwargs):
    return sdpa_attention_forward(module, query, key, value, attention_mask | attention_mask.mT.roll(-1, -1), **kwargs)


def flattened(query, key, value, starts):
    """Causal attention over all rows as one long one, in which a sequence begins wherever `starts` [B, L] says."""
    rows, _, width, _ = query.shape
    query, key, value = (part.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None] for part in (query, key, value))
    sequence = starts.flatten().cumsum(0)
    mask = (sequence[:, None] == sequence).tril()
    output = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return output[0].transpose(0, 1).unflatten(0, (rows, width)), None


def end_of_the_row_above(module, query, key, value, attention_mask, position_ids, **kwargs):
    """The first sequence of a row goes on where the row above ends."""
    starts = position_ids == 0
    starts[:, 0] = False
    return flattened(query, key, value, starts)


def one_long_row(module, query, key, value, attention_mask, position_ids, **kwargs):
    return flattened(query, key, value, position_ids == 0)


def llama(attention, vocabulary=50):
    AttentionInterface.register(attention.__name__, attention)
    AttentionMaskInterface.register(attention.__name__, sdpa_mask)
    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(vocab_size=vocabulary, **SIZE))
    model.set_attn_implementation(attention.__name__)
    return model


@pytest.mark.parametrize(
    "attention", [one_row_only, cuts_of_the_first_row, row_above, end_of_the_row_above, sees_what_follows]
)
def test_attention_that_leaks_anywhere_does_not_isolate(attention):
    assert not isolates_sequences(llama(attention))


@pytest.mark.parametrize("attention", [sdpa_attention_forward, one_long_row])
def test_attention_that_cuts_where_positions_restart_isolates(attention):
    model = llama(attention).train()
    assert isolates_sequences(model)
    assert model.training


@pytest.mark.parametrize("vocabulary", [2, 12, 24])
def test_a_small_vocabulary_hides_no_leak(vocabulary):
    """The tokens of the trial wrap around, and every changed one is another token all the same."""
    assert isolates_sequences(llama(sdpa_attention_forward, vocabulary))
    assert not isolates_sequences(llama(one_row_only, vocabulary))
