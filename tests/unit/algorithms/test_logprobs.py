"""Log-probabilities and entropies of tokens: worked by hand, and the same a chunk at a time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from castor.algorithms.logprobs import chunked_logprobs, token_logprobs


def test_worked_example():
    logits = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]], dtype=torch.float64)
    logprobs, entropy = token_logprobs(logits, torch.tensor([1, 0]), with_entropy=True)
    assert logprobs.tolist() == pytest.approx([math.log(0.75), math.log(0.5)])
    assert entropy.tolist() == pytest.approx([-0.75 * math.log(0.75) - 0.25 * math.log(0.25), math.log(2.0)])
    cooled = token_logprobs(logits, torch.tensor([1, 0]), temperature=0.5)
    assert cooled.tolist() == pytest.approx([math.log(0.9), math.log(0.5)])  # 3² against 1


def test_logits_of_a_coarse_type_are_taken_in_float32():
    logits = torch.tensor([[0.0, 8.0]], dtype=torch.bfloat16)
    logprob = token_logprobs(logits, torch.tensor([1]))
    assert logprob.dtype == torch.float32
    assert float(logprob) == pytest.approx(
        -math.log1p(math.exp(-8.0)), rel=1e-3
    )  # bfloat16 has no number so close to 0


@given(st.integers(1, 30), st.integers(1, 40), st.sampled_from([1.0, 0.7]), st.booleans(), st.integers(0, 99))
def test_chunks_give_the_numbers_and_gradients_of_all_tokens_at_once(count, chunk, temperature, with_entropy, seed):
    generator = torch.Generator().manual_seed(seed)
    normal = {"generator": generator, "dtype": torch.float64}
    hidden, weight, bias = torch.randn(count, 5, **normal), torch.randn(11, 5, **normal), torch.randn(11, **normal)
    tokens = torch.randint(11, (count,), generator=generator)
    upstream = torch.randn((2, count) if with_entropy else (count,), **normal)
    learned = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]

    def project(hidden):
        return torch.nn.functional.linear(hidden, weight, bias)

    whole = token_logprobs(project(hidden), tokens, temperature, with_entropy)
    expected = torch.autograd.grad(whole, learned, upstream)
    parts = chunked_logprobs(project, hidden, tokens, temperature, with_entropy, chunk=chunk)
    actual = torch.autograd.grad(parts, learned, upstream)
    torch.testing.assert_close((parts, *actual), (whole, *expected), rtol=0, atol=1e-9)
    with torch.no_grad():
        assert torch.equal(chunked_logprobs(project, hidden, tokens, temperature, with_entropy, chunk=chunk), parts)
