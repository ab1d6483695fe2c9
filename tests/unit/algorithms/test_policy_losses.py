"""Policy losses, KL and entropy against formulas in float64, values and gradients, and their global normalisation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from castor.algorithms.kl import k3
from castor.algorithms.kl_coefficient import LARGEST_COEFFICIENT, adapted_coefficient
from castor.algorithms.losses import clipped_policy_loss
from castor.algorithms.off_policy import importance_ratio
from castor.algorithms.ragged import sequence_sums, token_weights
from castor.algorithms.ratio import MAX_LOG_RATIO, bounded_exp, is_bounded
from castor.config.learner import Learner
from castor.dealing import partition

seeds = st.integers(0, 2**31 - 1)
ragged = st.lists(st.integers(1, 6), min_size=2, max_size=8)


def normal(count, rng, scale=1.0):
    return torch.randn(count, generator=rng, dtype=torch.float64) * scale


def naive_loss(logprob, old, advantage, low, high, dual):
    ratio = math.exp(logprob - old)
    loss = -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return min(loss, -dual * advantage) if dual is not None and advantage < 0 else loss


def central_difference(function, value, step=1e-6):
    return (function(value + step) - function(value - step)) / (2 * step)


@given(seeds, st.floats(0.05, 0.4), st.floats(0.05, 0.9), st.sampled_from([None, 1.5, 3.0]))
def test_values_and_gradients_of_every_clip(seed, low, high, dual):
    rng = torch.Generator().manual_seed(seed)
    new, old, advantages = normal(12, rng, 0.8).requires_grad_(), normal(12, rng, 0.8), normal(12, rng)
    losses = clipped_policy_loss(new, old, advantages, low, high, dual_clip=dual)
    losses.sum().backward()
    for i, (o, a) in enumerate(zip(old.tolist(), advantages.tolist(), strict=True)):
        naive = lambda value, o=o, a=a: naive_loss(value, o, a, low, high, dual)  # noqa: E731
        value = new[i].item()
        assert losses[i].item() == pytest.approx(naive(value), abs=1e-9)
        slopes = [central_difference(naive, value + shift) for shift in (-1e-5, 1e-5)]
        if abs(slopes[0] - slopes[1]) < 1e-3:  # not at a kink
            assert new.grad[i].item() == pytest.approx(central_difference(naive, value), abs=1e-6, rel=1e-6)


def test_one_range_is_the_symmetric_clip_to_the_last_bit():
    rng = torch.Generator().manual_seed(0)
    new, old, advantages = normal(64, rng), normal(64, rng), normal(64, rng)
    assert torch.equal(
        clipped_policy_loss(new, old, advantages, 0.2), clipped_policy_loss(new, old, advantages, 0.2, 0.2)
    )
    assert Learner().clip_range == (0.2, 0.2)
    assert Learner(clip_range_low=0.1, clip_range_high=0.28).clip_range == (0.1, 0.28)


def test_worked_clips():
    ratio = torch.tensor([1.25, 1.5, 10.0, 0.5], dtype=torch.float64)
    advantages = torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    old = torch.zeros(4, dtype=torch.float64)
    wide = clipped_policy_loss(ratio.log(), old, advantages, 0.2, 0.28)
    torch.testing.assert_close(wide, torch.tensor([-1.25, -1.28, 10.0, -0.5], dtype=torch.float64))
    dual = clipped_policy_loss(ratio.log(), old, advantages, 0.2, 0.28, dual_clip=3.0)
    torch.testing.assert_close(dual, torch.tensor([-1.25, -1.28, 3.0, -0.5], dtype=torch.float64))


log_ratios = st.lists(st.floats(-MAX_LOG_RATIO, MAX_LOG_RATIO), min_size=1, max_size=20)


@given(log_ratios, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_up_to_its_bound_the_exponential_is_that_of_torch_to_the_last_bit(values, dtype):
    ours, theirs = (torch.tensor(values, dtype=dtype, requires_grad=True) for _ in range(2))
    weights = torch.linspace(-3, 3, len(values)).to(dtype)
    (bounded, plain) = bounded_exp(ours), torch.exp(theirs)
    assert torch.equal(bounded, plain)
    bounded.backward(weights)
    plain.backward(weights)
    assert torch.equal(ours.grad, theirs.grad)
    assert not is_bounded(ours).any()


any_logprob = st.floats(-1e9, 0, width=32)


@given(any_logprob, any_logprob, st.floats(-50, 50, width=32), st.sampled_from([None, 3.0]))
def test_no_pair_of_log_probabilities_makes_a_loss_or_a_gradient_that_is_not_finite(new, old, advantage, dual):
    def with_gradient(loss):
        ours = torch.tensor([new], requires_grad=True)
        value = loss(ours)
        value.sum().backward()
        assert value.isfinite().all()
        assert ours.grad.isfinite().all()
        return ours.grad.item()

    given = torch.tensor([old])
    with_gradient(lambda ours: clipped_policy_loss(ours, given, torch.tensor([advantage]), 0.2, dual_clip=dual))
    pull = with_gradient(lambda ours: k3(ours, given))
    assert pull == 0 or (pull > 0) == (new > old)  # towards the reference, also beyond the bound
    assert importance_ratio(torch.tensor([new]), given).isfinite().all()


def test_a_token_beyond_the_bound_is_still_pulled_back():
    """Log-ratios of 95 and -95: exp(95) is infinite in float32, and 0 · inf was the gradient of a clipped token."""
    for advantage, expected in ((1.0, 0.0), (-1.0, math.exp(MAX_LOG_RATIO))):
        new = torch.tensor([95.0], requires_grad=True)
        clipped_policy_loss(new, torch.zeros(1), torch.tensor([advantage]), 0.2).sum().backward()
        assert new.grad.item() == pytest.approx(expected)
        assert is_bounded(new).all()
    new = torch.tensor([-95.0], requires_grad=True)
    k3(new, torch.zeros(1)).sum().backward()
    assert new.grad.item() == pytest.approx(1 - math.exp(MAX_LOG_RATIO))


@given(seeds)
def test_k3_is_the_formula_with_the_gradient_one_minus_the_ratio(seed):
    rng = torch.Generator().manual_seed(seed)
    ours, reference = normal(9, rng).requires_grad_(), normal(9, rng)
    losses = k3(ours, reference)
    losses.sum().backward()
    for i, (p, q) in enumerate(zip(ours.tolist(), reference.tolist(), strict=True)):
        assert losses[i].item() == pytest.approx(math.exp(q - p) - (q - p) - 1, abs=1e-9)
        assert losses[i].item() >= 0
        assert ours.grad[i].item() == pytest.approx(1 - math.exp(q - p), abs=1e-9)


def test_the_mean_of_k3_under_the_policy_is_the_kl():
    policy, reference = (torch.tensor(p, dtype=torch.float64) for p in ([0.7, 0.2, 0.1], [0.3, 0.3, 0.4]))
    kl = (policy * (policy / reference).log()).sum()
    assert float(policy @ k3(policy.log(), reference.log())) == pytest.approx(float(kl), abs=1e-12)


@given(st.floats(0.001, 1.0), st.floats(-5, 50), st.floats(0.1, 20), st.integers(1, 512), st.integers(1000, 20000))
def test_the_adaptive_coefficient_moves_towards_the_target(beta, kl, target, responses, horizon):
    error = max(-0.2, min(0.2, (kl - target) / target))
    adapted = adapted_coefficient(beta, kl, target, responses, horizon)
    assert adapted == pytest.approx(beta + beta * error * responses / horizon, rel=1e-9)
    assert adapted > 0
    assert (adapted > beta) == (kl > target) or adapted == beta


def test_the_adaptive_coefficient_stays_positive_and_finite():
    low = high = 0.1
    for _ in range(10_000):  # a batch of 50 times the horizon, far from its target for ever
        low, high = adapted_coefficient(low, -3.0, 6.0, 512, 10), adapted_coefficient(high, 1e30, 6.0, 512, 10)
    assert 0 <= low < 1e-300
    assert high == LARGEST_COEFFICIENT
    assert adapted_coefficient(0.1, 0.0, 6.0, 512, 10) == pytest.approx(0.08)  # at most a fifth a step
    with pytest.raises(ValueError, match="not finite"):
        adapted_coefficient(0.1, math.nan, 6.0, 64, 1000)


def test_a_worked_coefficient():
    # twice the target is clipped to +20 %, of which 256 of 2,560 responses are a tenth: 2 %
    assert adapted_coefficient(0.1, 12.0, 6.0, 256, 2560) == pytest.approx(0.102)
    assert adapted_coefficient(0.1, 5.4, 6.0, 256, 2560) == pytest.approx(0.099)


@given(ragged, seeds, st.sampled_from(["sequence", "token"]), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))
def test_global_normalisation_of_every_term_over_mini_batches_ranks_and_micro_batches(
    lengths, seed, normalization, micro, ranks, minis
):
    """However a mini-batch is dealt, the gradient is that of the mean over the whole mini-batch, in every epoch."""
    rng = torch.Generator().manual_seed(seed)
    minis = min(minis, len(lengths))
    new, old = normal(sum(lengths), rng, 0.3).requires_grad_(), normal(sum(lengths), rng, 0.3)
    advantages, reference = normal(sum(lengths), rng), normal(sum(lengths), rng, 0.3)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    tokens_of = [range(start, start + length) for start, length in zip(starts, lengths, strict=True)]

    def loss(chosen):
        """Per token [R] of these sequences: the surrogate and a KL loss."""
        at = torch.tensor([t for i in chosen for t in tokens_of[i]])
        surrogate = clipped_policy_loss(new[at], old[at], advantages[at], 0.2, 0.3, dual_clip=2.0)
        return surrogate + 0.1 * k3(new[at], reference[at])

    for epoch in range(2):
        order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for part in range(minis):
            chosen = order[part::minis]
            tokens = sum(lengths[i] for i in chosen)
            if normalization == "sequence":
                whole = sum(loss([i]).mean() for i in chosen) / len(chosen)
            else:
                whole = loss(chosen).sum() / tokens
            (expected,) = torch.autograd.grad(whole, new)
            actual = torch.zeros_like(new)
            for rank in partition([lengths[i] for i in chosen], ranks):
                mine = [chosen[i] for i in rank]
                for piece in partition([lengths[i] for i in mine], micro):
                    picked = [mine[i] for i in piece]
                    if picked:
                        weights = token_weights(
                            torch.tensor([lengths[i] for i in picked]),
                            normalization,
                            len(chosen),
                            tokens,
                            torch.float64,
                        )
                        actual += torch.autograd.grad((weights * loss(picked)).sum(), new)[0]
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@given(ragged, seeds)
def test_sequence_sums(lengths, seed):
    values = normal(sum(lengths), torch.Generator().manual_seed(seed))
    expected = torch.tensor([sum(part.tolist()) for part in values.split(lengths)], dtype=torch.float64)
    torch.testing.assert_close(sequence_sums(values, torch.tensor(lengths)), expected, rtol=0, atol=1e-12)


def test_the_entropy_of_the_policy_is_that_of_the_whole_vocabulary(tiny_models):
    """Values against a plain softmax of the logits; the log-probabilities are those without the entropy."""
    from castor.models.policy import PolicyModel
    from castor.packing import pack_rows

    policy = PolicyModel.load(tiny_models.policy, torch.float32).requires_grad_(False)
    tokens, lengths = torch.arange(5, 17).numpy(), torch.tensor([7, 5]).numpy()
    rows, positions = pack_rows(tokens, lengths, 16), torch.tensor([3, 4, 6, 9, 11])
    plain, (logprobs, entropy) = policy(rows, positions, 0.8), policy(rows, positions, 0.8, True)
    assert torch.equal(plain, logprobs)
    for start, length, wanted in ((0, 7, [3, 4, 6]), (7, 5, [9, 11])):
        ids = torch.from_numpy(tokens[start : start + length])[None]
        distribution = torch.softmax(policy.lm(input_ids=ids).logits[0].double() / 0.8, -1)
        for position in wanted:
            p = distribution[position - start - 1]
            mine = float(entropy[positions.tolist().index(position)])
            assert mine == pytest.approx(float(-(p * p.log()).sum()), abs=1e-4)
    assert policy(rows, positions[:0], 1.0, True).shape == (2, 0)
