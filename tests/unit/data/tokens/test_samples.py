"""Samples in memory and in a file; packed and padded batches give the same loss and gradient."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from castor.data.tokens.samples import TOKENS_FILE, Samples
from castor.models.policy import PolicyModel
from castor.models.score import ScoreInfo, ScoreModel
from tests.numerics import assert_close, tolerance


class Letters:
    """A template of one token a letter; history is put before the prompt."""

    def prompt_text(self, prompt, history=()):
        return "".join(text for turn in history for text in turn) + prompt

    def encode_texts(self, texts):
        return [[1, *self._tokens(text)] for text in texts]

    def encode_responses(self, responses):
        return [[*self._tokens(response), 2] for response in responses]

    def _tokens(self, text):
        return [ord(letter) % 50 for letter in text]


TEXTS = [
    [("ask", "answer"), ("ask", "no")],
    [("x", "far too long an answer for this"), ("x", "y")],
    [("more", "yes", (("before", "that"),)), ("more", "an answer")],
    [("a", "b"), ("a", "cdef")],
]


@pytest.fixture(params=["memory", "file", "opened"])
def samples(request, tmp_path):
    if request.param == "memory":
        return Samples(Letters(), TEXTS, 24)
    written = Samples(Letters(), iter(TEXTS), 24, tmp_path / "samples")
    return written if request.param == "file" else Samples.open(tmp_path / "samples")


def test_samples_are_the_same_wherever_they_are_kept(samples):
    assert samples.kept.tolist() == [0, 2, 3]
    assert (samples.too_long, samples.per_sample, len(samples)) == (1, 2, 3)
    assert samples.lengths().tolist() == [11 + 7, 19 + 15, 4 + 7]
    assert samples.targets(np.array([0, 2]), train_on_prompt=False) == 7 + 3 + 2 + 5
    assert samples.targets(np.array([0, 2]), train_on_prompt=True) == 10 + 6 + 3 + 6
    packed = samples.pack(np.array([2, 0]), 16)
    assert packed.lengths.tolist() == [4, 7, 11, 7]
    assert packed.prompt_lengths.tolist() == [2, 2, 4, 4]
    tokens = packed.rows.input_ids.view(-1)[packed.rows.flat].tolist()
    assert tokens[:4] == [1, ord("a") % 50, ord("b") % 50, 2]


def test_tokens_in_a_file_are_not_read_into_memory(tmp_path):
    samples = Samples(Letters(), TEXTS, 24, tmp_path / "samples")
    assert isinstance(samples._tokens, np.memmap)
    assert (tmp_path / "samples" / TOKENS_FILE).stat().st_size == 4 * samples.lengths().sum()


def test_texts_are_taken_together_in_blocks_each_once_a_block(monkeypatch):
    taken = []

    class Counted(Letters):
        def encode_texts(self, texts):
            taken.append(("asked", list(texts)))
            return super().encode_texts(texts)

        def encode_responses(self, responses):
            taken.append(("said", list(responses)))
            return super().encode_responses(responses)

    texts = [*TEXTS, [("a", "cdef"), ("a", "b")], [("more", "an answer"), ("before", "that")]]
    monkeypatch.setattr("castor.data.tokens.samples.BLOCK", 3)
    samples = Samples(Counted(), iter(texts), 1000)
    assert taken[2:] == [("asked", ["a", "more", "before"]), ("said", ["b", "cdef", "an answer", "that"])]
    alone = [Samples(Letters(), [text], 1000)._tokens for text in texts]
    assert samples._tokens.tolist() == np.concatenate(alone).tolist()


def test_every_sample_has_the_same_number_of_sequences():
    with pytest.raises(ValueError, match="sample 1 has 1 sequences, those before it 2"):
        Samples(Letters(), [[("a", "b"), ("a", "c")], [("a", "b")]], 9)


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    lm = LlamaForCausalLM(config).double()
    lm.config.use_cache = False
    return lm


def padded(packed):
    """Token ids [n, L] and mask of the same sequences, one a row, padded on the right."""
    tokens = packed.rows.input_ids.view(-1)[packed.rows.flat].split(packed.lengths.tolist())
    ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    return ids, (torch.arange(ids.shape[1]) < packed.lengths[:, None]).long()


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_packed_and_padded_give_the_same_language_model_loss_and_gradient():
    packed = Samples(Letters(), TEXTS, 40).pack(np.arange(4), 48)
    assert len(packed.rows.input_ids) < len(packed.lengths)  # several sequences share a row
    ours = PolicyModel(llama())
    loss = -ours(packed.rows, packed.target_positions(train_on_prompt=False)).double().sum()
    loss.backward()
    lm = llama()
    ids, mask = padded(packed)
    labels = ids.masked_fill((mask == 0) | (torch.arange(ids.shape[1]) < packed.prompt_lengths[:, None]), -100)
    logits = lm(input_ids=ids, attention_mask=mask).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance(1.0, 50))  # the softmax over 50 is float32
    theirs = gradients(lm)
    for name, gradient in gradients(ours.lm).items():
        assert_close(gradient, theirs[name], summands=50)


def test_packed_and_padded_give_the_same_scores_and_gradient():
    packed = Samples(Letters(), TEXTS, 40).pack(np.arange(4), 48)
    torch.manual_seed(1)
    ours = ScoreModel(llama().model, ScoreInfo("reward"))
    scores = ours(packed.rows, packed.last_positions())
    scores.square().sum().backward()
    grad = {name: gradient.clone() for name, gradient in gradients(ours).items()}
    ours.zero_grad()
    ids, mask = padded(packed)
    hidden = ours.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = ours.score_head(hidden[torch.arange(len(ids)), packed.lengths - 1]).squeeze(-1)
    expected.square().sum().backward()
    assert_close(scores, expected, summands=1)
    for name, gradient in gradients(ours).items():
        assert_close(grad[name], gradient, summands=len(packed.lengths))
