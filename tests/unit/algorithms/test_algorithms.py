"""Advantages and losses against references written from the formulas, sequence by sequence, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from castor.algorithms.advantages import combine, gae, penalized_stream
from castor.algorithms.losses import clipped_policy_loss, clipped_value_loss
from castor.algorithms.preference import (
    compared_positions,
    cost_loss,
    mean_per_pair,
    reward_loss,
    safety_loss,
    sign_loss,
)
from castor.algorithms.ragged import last_token_index, to_padded, token_weights
from castor.dealing import partition

ragged = st.lists(st.integers(1, 7), min_size=1, max_size=6)
seeds = st.integers(0, 2**31 - 1)
GAE = {"gamma": 0.97, "gae_lambda": 0.9}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(count, rng, scale=1.0):
    return torch.randn(count, generator=rng, dtype=torch.float64) * scale


def sequences(flat, lengths):
    return [part.tolist() for part in flat.split(list(lengths))]


def naive_stream(scores, ours, reference, lengths, *, sign, beta, clip):
    streams = []
    for score, pi, ref in zip(scores.tolist(), sequences(ours, lengths), sequences(reference, lengths), strict=True):
        stream = [sign * beta * (p - q) for p, q in zip(pi, ref, strict=True)]
        stream[-1] += score
        streams += [min(max(value, -clip), clip) for value in stream]
    return torch.tensor(streams, dtype=torch.float64)


def naive_gae(rewards, values, lengths, gamma, gae_lambda):
    advantages = []
    for r, v in zip(sequences(rewards, lengths), sequences(values, lengths), strict=True):
        deltas = [r[t] + gamma * (v[t + 1] if t + 1 < len(v) else 0.0) - v[t] for t in range(len(r))]
        advantages += [
            sum((gamma * gae_lambda) ** (k - t) * deltas[k] for k in range(t, len(r))) for t in range(len(r))
        ]
    return torch.tensor(advantages, dtype=torch.float64)


@given(ragged, seeds, st.sampled_from([("objective", -1.0), ("constraint", 1.0)]), st.floats(0.5, 60.0))
def test_the_stream_is_the_signed_penalty_plus_the_end_score_clamped_after_the_sum(lengths, seed, role_sign, clip):
    rng, (role, sign) = generator(seed), role_sign
    tokens = sum(lengths)
    scores, ours, reference = normal(len(lengths), rng, 20.0), normal(tokens, rng, 5.0), normal(tokens, rng, 5.0)
    stream = penalized_stream(
        scores, ours, reference, torch.tensor(lengths), role=role, kl_coeff=0.1, clip_range_score=clip
    )
    expected = naive_stream(scores, ours, reference, lengths, sign=sign, beta=0.1, clip=clip)
    torch.testing.assert_close(stream, expected, rtol=0, atol=1e-12)


def test_a_worked_stream_clamps_the_sum_and_not_the_score():
    # k = [1, -2 | 3], β = 0.5; 51 - 1.5 = 49.5 is inside the clamp of 50 although the score is not
    ours, reference = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 2.0, 0.0])
    stream = penalized_stream(
        torch.tensor([2.0, 51.0]), ours, reference, torch.tensor([2, 1]), role="objective", kl_coeff=0.5,
        clip_range_score=50.0,
    )  # fmt: skip
    assert stream.tolist() == [-0.5, 3.0, 49.5]  # clamping the score first would give 48.5
    with pytest.raises(KeyError):
        penalized_stream(
            torch.zeros(1), ours, reference, torch.tensor([3]), role="judge", kl_coeff=0.5, clip_range_score=1.0
        )


@given(ragged, seeds)
def test_gae_equals_the_sum_over_deltas_of_each_sequence(lengths, seed):
    rng = generator(seed)
    rewards, values = normal(sum(lengths), rng), normal(sum(lengths), rng)
    advantages, returns = gae(rewards, values, torch.tensor(lengths), **GAE)
    torch.testing.assert_close(advantages, naive_gae(rewards, values, lengths, **GAE), rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, advantages + values, rtol=0, atol=0)


def test_worked_gae_without_whitening():
    # δ = [1 + 0.5·4 - 2, 3 + 0 - 4] = [1, -1]; A = [1 + 0.25·(-1), -1]; the second sequence does not see the first
    advantages, returns = gae(
        torch.tensor([1.0, 3.0, 10.0]), torch.tensor([2.0, 4.0, 1.0]), torch.tensor([2, 1]), gamma=0.5, gae_lambda=0.5
    )
    assert advantages.tolist() == [0.75, -1.0, 9.0]
    assert returns.tolist() == [2.75, 3.0, 10.0]


@given(ragged, seeds)
def test_with_gamma_and_lambda_one_the_return_is_the_sum_of_what_is_left(lengths, seed):
    rng = generator(seed)
    rewards, values = normal(sum(lengths), rng), normal(sum(lengths), rng)
    _, returns = gae(rewards, values, torch.tensor(lengths), gamma=1.0, gae_lambda=1.0)
    expected = [sum(part[t:]) for part in sequences(rewards, lengths) for t in range(len(part))]
    torch.testing.assert_close(returns, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@given(ragged, seeds, st.floats(0.0, 100.0), st.floats(0.0, 100.0))
def test_effective_kl_strength_does_not_depend_on_the_multipliers(lengths, seed, first_price, second_price):
    """Invariant 4: with all scores and values zero, A is that of -β k whatever the prices are."""
    rng, flat = generator(seed), torch.tensor(lengths)
    ours, reference = normal(sum(lengths), rng), normal(sum(lengths), rng)

    def advantage(role):
        stream = penalized_stream(
            torch.zeros(len(lengths), dtype=torch.float64), ours, reference, flat, role=role, kl_coeff=0.3,
            clip_range_score=50.0,
        )  # fmt: skip
        return gae(stream, torch.zeros_like(stream), flat, **GAE)[0]

    penalty, cost = advantage("objective"), advantage("constraint")
    combined = combine(
        {"helpfulness": penalty}, {"helpfulness": 1.0}, {"a": cost, "b": cost}, {"a": first_price, "b": second_price}
    )
    torch.testing.assert_close(combined, penalty, rtol=1e-10, atol=1e-12)


@given(seeds, st.integers(1, 3), st.integers(0, 3))
def test_combine_is_the_weighted_difference_over_one_plus_the_prices(seed, objectives, constraints):
    rng = generator(seed)
    goals = {f"o{i}": normal(5, rng) for i in range(objectives)}
    costs = {f"c{i}": normal(5, rng) for i in range(constraints)}
    weights = {name: float(normal(1, rng).exp()) for name in goals}
    prices = {name: float(normal(1, rng).exp()) for name in costs} | {"not of this run": 7.0}
    expected = []
    for t in range(5):
        gain = sum(weights[name] * advantage[t].item() for name, advantage in goals.items())
        price = sum(prices[name] * advantage[t].item() for name, advantage in costs.items())
        expected.append((gain - price) / (1.0 + sum(prices[name] for name in costs)))
    torch.testing.assert_close(
        combine(goals, weights, costs, prices), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_an_unpriced_constraint_is_an_error_and_zero_prices_are_plain_ppo():
    one = torch.ones(2)
    with pytest.raises(KeyError, match="harm"):
        combine({"r": one}, {"r": 1.0}, {"harm": one}, {})
    assert torch.equal(combine({"r": one}, {"r": 1.0}, {"harm": 5 * one}, {"harm": 0.0}), one)
    assert torch.equal(combine({"r": one}, {"r": 1.0}, {}, {}), one)


def test_a_higher_cost_lowers_the_advantage():
    """The sign of a constraint: among equally helpful responses the costlier one is made less likely."""
    cheap_and_dear = torch.tensor([-1.0, 1.0])
    combined = combine({"r": torch.zeros(2)}, {"r": 1.0}, {"harm": cheap_and_dear}, {"harm": 1.0})
    assert combined.tolist() == [0.5, -0.5]


def naive_policy_loss(logprob, old, advantage, clip):
    ratio = math.exp(logprob - old)
    return -min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)


def naive_value_loss(value, old, target, clip):
    clipped = min(max(value, old - clip), old + clip)
    return 0.5 * max((value - target) ** 2, (clipped - target) ** 2)


@given(seeds)
def test_policy_and_value_loss_equal_the_formulas(seed):
    rng = generator(seed)
    new, old, third = normal(9, rng, 0.3), normal(9, rng, 0.3), normal(9, rng)
    for loss, naive, clip in (
        (clipped_policy_loss, naive_policy_loss, 0.2),
        (clipped_value_loss, naive_value_loss, 0.15),
    ):
        expected = [naive(a, b, c, clip) for a, b, c in zip(new.tolist(), old.tolist(), third.tolist(), strict=True)]
        torch.testing.assert_close(
            loss(new, old, third, clip), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("seed", range(5))
def test_gradients_equal_finite_differences(seed):
    rng = generator(seed)
    new, old, third = normal(9, rng, 0.3).requires_grad_(), normal(9, rng, 0.3), normal(9, rng)
    assert torch.autograd.gradcheck(lambda x: clipped_policy_loss(x, old, third, 0.2), (new,))
    assert torch.autograd.gradcheck(lambda x: clipped_value_loss(x, old, third, 0.15), (new,))
    first, second = normal(4, rng).requires_grad_(), normal(4, rng).requires_grad_()
    flags = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert torch.autograd.gradcheck(lambda x, y: reward_loss(x, y, 0.01), (first, second))
    assert torch.autograd.gradcheck(lambda x, y: cost_loss(x, y, *flags, 0.01), (first, second))


def test_the_policy_loss_stops_pushing_outside_the_clip_range():
    """∂/∂logπ is -A ρ where the ratio may still move, 0 where it has moved far enough in A's direction."""
    ratio = torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5], dtype=torch.float64)
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    logprobs = ratio.log().requires_grad_()
    clipped_policy_loss(logprobs, torch.zeros(5, dtype=torch.float64), advantages, 0.2).sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([-1.0, 0.0, -0.5, 1.5, 0.0], dtype=torch.float64))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def naive_reward(first, second, regularization):
    return -log_sigmoid(first - second) + regularization * (first**2 + second**2) / 2


def naive_safety(score, safe, regularization, sign_weight):
    return -sign_weight * log_sigmoid(-score if safe else score) + regularization * score**2 / 2


def naive_cost(first, second, first_safe, second_safe, regularization, sign_weight):
    signs = naive_safety(first, first_safe, regularization, sign_weight)
    signs += naive_safety(second, second_safe, regularization, sign_weight)
    return signs - log_sigmoid(second - first)


def slope(naive, values, index, step=1e-5):
    """Central difference of a function of a list of floats."""
    up, down = list(values), list(values)
    up[index] += step
    down[index] -= step
    return (naive(up) - naive(down)) / (2 * step)


@given(seeds, st.floats(0, 1), st.floats(0.1, 3))
def test_preference_losses_equal_the_formulas(seed, regularization, sign_weight):
    """Values to 1e-12 and gradients to 1e-6 of loops over float64."""
    rng = generator(seed)
    first, second = (normal(6, rng, 3.0).requires_grad_() for _ in range(2))
    first_safe, second_safe = (torch.randint(0, 2, (6,), generator=rng).bool() for _ in range(2))
    flags = list(zip(first_safe.tolist(), second_safe.tolist(), strict=True))

    def naive_rewards(values):
        return [naive_reward(*pair, regularization) for pair in zip(values[:6], values[6:], strict=True)]

    def naive_costs(values):
        pairs = zip(values[:6], values[6:], flags, strict=True)
        return [naive_cost(a, b, *safe, regularization, sign_weight) for a, b, safe in pairs]

    def naive_signs(values):
        safe = [*first_safe.tolist(), *second_safe.tolist()]
        return [naive_safety(*answer, regularization, sign_weight) for answer in zip(values, safe, strict=True)]

    cost = cost_loss(first, second, first_safe, second_safe, regularization, sign_weight=sign_weight)
    both, both_safe = torch.cat([first, second]), torch.cat([first_safe, second_safe])
    signs = safety_loss(both, both_safe, regularization, sign_weight)
    values = [*first.tolist(), *second.tolist()]
    reward = reward_loss(first, second, regularization)
    for actual, naive in ((reward, naive_rewards), (cost, naive_costs), (signs, naive_signs)):
        expected = torch.tensor(naive(values), dtype=torch.float64)
        torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=1e-12)
        gradient = torch.cat(torch.autograd.grad(actual.sum(), (first, second)))
        slopes = [slope(lambda v, naive=naive: sum(naive(v)), values, i) for i in range(12)]
        torch.testing.assert_close(gradient, torch.tensor(slopes, dtype=torch.float64), rtol=0, atol=1e-6)


def naive_token_wise(scores, tokens, per_position):
    """A pair's loss from the scores of its two sequences, written as in the reference but without padding tokens."""
    longest = max(len(tokens[0]), len(tokens[1]))
    padded = [t + [None] * (longest - len(t)) for t in tokens]
    differing = [i for i in range(longest) if padded[0][i] != padded[1][i]]
    begin = differing[0] if differing else longest - 1
    last = [len(t) - 1 for t in tokens]
    terms = [per_position(scores[0][min(i, last[0])], scores[1][min(i, last[1])]) for i in range(begin, longest)]
    return sum(terms) / len(terms)


token_lists = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@settings(max_examples=60)
@given(st.lists(st.tuples(token_lists, token_lists), min_size=1, max_size=4), seeds, st.floats(0, 1))
def test_token_wise_losses_equal_the_formulas(pairs, seed, regularization):
    rng = generator(seed)
    sequences_of = [sequence for pair in pairs for sequence in pair]
    lengths = torch.tensor([len(sequence) for sequence in sequences_of])
    tokens = torch.tensor([token for sequence in sequences_of for token in sequence])
    scores = normal(len(tokens), rng, 2.0).requires_grad_()
    flags = torch.randint(0, 2, (len(pairs), 2), generator=rng).bool()
    first_at, second_at, counts = compared_positions(tokens, lengths)
    first, second = scores[first_at], scores[second_at]
    each = flags.repeat_interleave(counts, 0).unbind(1)
    reward = mean_per_pair(reward_loss(first, second, regularization), counts)
    cost = mean_per_pair(cost_loss(first, second, *each, regularization, sign_weight=0.7), counts)

    def naive(values, kind):
        flat, losses = torch.tensor(values, dtype=torch.float64), []
        split = [part.tolist() for part in flat.split(lengths.tolist())]
        for i, pair in enumerate(pairs):
            safe = flags[i].tolist()

            def per_position(a, b, safe=safe):
                if kind == "reward":
                    return naive_reward(a, b, regularization)
                return naive_cost(a, b, *safe, regularization, 0.7)

            losses.append(naive_token_wise(split[2 * i : 2 * i + 2], [list(part) for part in pair], per_position))
        return losses

    for actual, kind in ((reward, "reward"), (cost, "cost")):
        expected = torch.tensor(naive(scores.tolist(), kind), dtype=torch.float64)
        torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=1e-12)
        (gradient,) = torch.autograd.grad(actual.sum(), scores, retain_graph=True)
        index = int(torch.randint(0, len(tokens), (1,), generator=rng))
        expected_slope = slope(lambda values, kind=kind: sum(naive(values, kind)), scores.tolist(), index)
        assert float(gradient[index]) == pytest.approx(expected_slope, abs=1e-6)


def test_worked_compared_positions():
    """From the first difference on; the shorter one's end is compared again; equal pairs at their end; none at all."""
    tokens = torch.tensor([1, 2, 3, 9, 1, 2, 9, 5, 9, 5, 9, 4, 9, 9, 4, 9])
    first, second, counts = compared_positions(tokens, torch.tensor([4, 3, 2, 2, 3, 2]))
    assert first.tolist() == [2, 3, 8, 13]
    assert second.tolist() == [6, 6, 10, 15]
    assert counts.tolist() == [2, 1, 1]
    nothing = compared_positions(tokens[:0], torch.empty(0, dtype=torch.int64))
    assert [part.tolist() for part in nothing] == [[], [], []]
    assert mean_per_pair(torch.empty(0), nothing[2]).shape == (0,)


def test_losses_stay_finite_for_large_scores():
    big = torch.tensor([1e4, -1e4])
    assert reward_loss(big, -big, 0.0).tolist() == [0.0, 2e4]
    assert sign_loss(big, torch.tensor([True, True])).tolist() == [1e4, 0.0]


def test_zero_is_the_boundary_of_the_cost():
    """At zero the sign terms pull a safe response below zero and an unsafe one above, equally hard."""
    costs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = safety_loss(costs, torch.tensor([True, False]), 0.5).sum()
    loss.backward()
    assert loss.item() == pytest.approx(2 * math.log(2))
    assert costs.grad.tolist() == [0.5, -0.5]  # descent lowers the safe cost, raises the unsafe one


@given(ragged, seeds, st.sampled_from(["sequence", "token"]), st.integers(1, 4))
def test_the_loss_does_not_depend_on_how_a_mini_batch_is_cut(lengths, seed, normalization, pieces):
    losses = normal(sum(lengths), generator(seed))
    parts = losses.split(lengths)
    if normalization == "sequence":
        expected = sum(part.mean().item() for part in parts) / len(parts)
    else:
        expected = losses.mean().item()
    total = 0.0
    for chosen in partition(lengths, pieces):
        if chosen:
            weights = token_weights(
                torch.tensor([lengths[i] for i in chosen]), normalization, len(lengths), sum(lengths), torch.float64
            )
            total += (weights * torch.cat([parts[i] for i in chosen])).sum().item()
    assert total == pytest.approx(expected, abs=1e-12)


def test_an_empty_share_has_no_weight_and_an_unknown_normalization_is_an_error():
    empty = torch.empty(0, dtype=torch.int64)
    assert len(token_weights(empty, "sequence", 3, 9)) == len(token_weights(empty, "token", 3, 9)) == 0
    with pytest.raises(ValueError, match="batch"):
        token_weights(torch.tensor([1]), "batch", 1, 1)


@given(ragged, seeds)
def test_ragged_helpers_place_every_token(lengths, seed):
    values, flat = normal(sum(lengths), generator(seed)), torch.tensor(lengths)
    padded, mask = to_padded(values, flat)
    assert torch.equal(padded[mask], values)
    assert mask.sum(1).tolist() == lengths
    assert not padded[~mask].any()
    assert values[last_token_index(flat)].tolist() == [part[-1].item() for part in values.split(lengths)]
