"""Critic-free estimators against loops in float64, and the strength of the KL penalty under every combination."""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from castor.algorithms.advantages import (
    combine,
    critic_free,
    gae,
    group_relative,
    leave_one_out,
    penalized_stream,
    return_to_go,
    whiten,
)
from castor.config.multipliers import Multipliers
from castor.config.rlhf import RLHF
from castor.config.signal import Signal

seeds = st.integers(0, 2**31 - 1)
groups = st.lists(st.integers(2, 4), min_size=1, max_size=5)


def normal(count, seed, scale=1.0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def shuffled_groups(sizes, seed):
    """Prompt of each response: groups of these sizes, in random order, with ids that are not 0, 1, 2, ..."""
    prompts = torch.tensor([3 * number + 1 for number, size in enumerate(sizes) for _ in range(size)])
    return prompts[torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))]


def members(prompts, values):
    return {p: [v for q, v in zip(prompts.tolist(), values.tolist(), strict=True) if q == p] for p in prompts.tolist()}


@given(groups, seeds, st.booleans())
def test_group_relative_is_the_standard_score_within_the_prompt(sizes, seed, divide):
    prompts = shuffled_groups(sizes, seed)
    returns = normal(len(prompts), seed, 3.0)
    group = members(prompts, returns)
    expected = [
        (value - statistics.fmean(group[p])) / ((statistics.stdev(group[p]) + 1e-6) if divide else 1.0)
        for p, value in zip(prompts.tolist(), returns.tolist(), strict=True)
    ]
    actual = group_relative(returns, prompts, divide_by_std=divide)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


@given(groups, seeds)
def test_leave_one_out_is_the_distance_from_the_mean_of_the_others(sizes, seed):
    prompts = shuffled_groups(sizes, seed)
    returns = normal(len(prompts), seed, 3.0)
    expected = []
    for i, (p, value) in enumerate(zip(prompts.tolist(), returns.tolist(), strict=True)):
        others = [returns[j].item() for j, q in enumerate(prompts.tolist()) if q == p and j != i]
        expected.append(value - sum(others) / len(others))
    torch.testing.assert_close(
        leave_one_out(returns, prompts), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_worked_groups():
    returns, prompts = torch.tensor([1.0, 5.0, 3.0, 7.0]), torch.tensor([4, 9, 4, 9])
    assert leave_one_out(returns, prompts).tolist() == [-2.0, -2.0, 2.0, 2.0]
    assert group_relative(returns, prompts, divide_by_std=False).tolist() == [-1.0, -1.0, 1.0, 1.0]
    assert group_relative(returns, prompts, divide_by_std=True)[2] == pytest.approx(1 / math.sqrt(2), abs=1e-5)


def test_equal_returns_teach_nothing_and_a_lone_response_is_an_error():
    equal = torch.full((4,), 0.1, dtype=torch.float32)
    prompts = torch.tensor([0, 0, 0, 0])
    assert group_relative(equal, prompts, divide_by_std=True).abs().max() < 1e-6
    assert leave_one_out(equal, prompts).abs().max() < 1e-6
    for estimate in (lambda p: leave_one_out(equal, p), lambda p: group_relative(equal, p, divide_by_std=True)):
        with pytest.raises(ValueError, match="alone in its group"):
            estimate(torch.tensor([0, 0, 0, 1]))


@given(groups, seeds)
def test_leave_one_out_does_not_move_with_what_all_samples_share(sizes, seed):
    prompts = shuffled_groups(sizes, seed)
    returns = normal(len(prompts), seed)
    torch.testing.assert_close(
        leave_one_out(returns + 7.5, prompts), leave_one_out(returns, prompts), atol=1e-9, rtol=0
    )


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), seeds, st.floats(0.5, 1.0))
def test_return_to_go_and_whitening_equal_the_loops(lengths, seed, gamma):
    stream = normal(sum(lengths), seed)
    expected = []
    for part in stream.split(lengths):
        values = part.tolist()
        expected += [sum(gamma ** (k - t) * values[k] for k in range(t, len(values))) for t in range(len(values))]
    returns = return_to_go(stream, torch.tensor(lengths), gamma=gamma)
    torch.testing.assert_close(returns, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    center, deviation = statistics.fmean(expected), statistics.pstdev(expected)
    normalised = [(value - center) / (deviation + 1e-8) for value in expected]
    torch.testing.assert_close(whiten(returns), torch.tensor(normalised, dtype=torch.float64), rtol=0, atol=1e-6)
    plus_plus = critic_free(
        stream, torch.tensor(lengths), torch.arange(len(lengths)), estimator="reinforce_pp", gamma=gamma, group_std=True
    )
    torch.testing.assert_close(plus_plus, whiten(returns), rtol=0, atol=0)


@given(groups, seeds, st.booleans())
def test_every_token_has_its_responses_advantage(sizes, seed, divide):
    prompts = shuffled_groups(sizes, seed)
    lengths = torch.randint(1, 6, (len(prompts),), generator=torch.Generator().manual_seed(seed))
    stream = normal(int(lengths.sum()), seed)
    returns = torch.stack([part.sum() for part in stream.split(lengths.tolist())])
    for estimator, per_response in (
        ("leave_one_out", leave_one_out(returns, prompts)),
        ("group_relative", group_relative(returns, prompts, divide_by_std=divide)),
    ):
        actual = critic_free(stream, lengths, prompts, estimator=estimator, gamma=1.0, group_std=divide)
        for part, expected in zip(actual.split(lengths.tolist()), per_response, strict=True):
            assert (part - expected).abs().max() < 1e-6
    with pytest.raises(ValueError, match="unknown estimator"):
        critic_free(stream, lengths, prompts, estimator="gae", gamma=1.0, group_std=divide)


def run_config(combination, estimator, weights):
    constraint = {"role": "constraint", "model": "c", "threshold": 0.0}
    objectives = {f"o{i}": Signal(role="objective", model="r", weight=weight) for i, weight in enumerate(weights)}
    return RLHF(
        steps=1,
        samples_per_prompt=2,
        signals={**objectives, "a": constraint, "b": constraint},
        multipliers=Multipliers(rule="projected"),
        advantage={"combination": combination, "estimator": estimator, "kl_coeff": 0.3, "kl_placement": "reward"}
        | ({"group_std": False} if estimator == "group_relative" else {}),
    )


@pytest.mark.parametrize(
    ("combination", "estimator"),
    list(itertools.product(("normalized", "plain"), ("gae", "leave_one_out", "group_relative"))),
)
@settings(max_examples=25)
@given(seeds, st.tuples(st.floats(0, 100), st.floats(0, 100)), st.lists(st.floats(0.1, 4), min_size=1, max_size=3))
def test_the_kl_penalty_has_its_full_weight_once(combination, estimator, seed, prices, weights):
    """Invariant 4: with all scores zero the combined advantage is that of -β k, whatever λ, weights and combination."""
    config, prompts = run_config(combination, estimator, weights), torch.tensor([0, 0, 1, 1])
    lengths = torch.tensor([3, 1, 4, 2])
    ours, reference = normal(10, seed), normal(10, seed + 1)

    def advantage(stream):
        if estimator == "gae":
            return gae(stream, torch.zeros_like(stream), lengths, gamma=0.97, gae_lambda=0.9)[0]
        return critic_free(stream, lengths, prompts, estimator=estimator, gamma=1.0, group_std=False)

    def of_signal(name):
        stream = penalized_stream(
            torch.zeros(4, dtype=torch.float64), ours, reference, lengths, role=config.signals[name].role,
            kl_coeff=0.3 * config.kl_share(name), clip_range_score=50.0,
        )  # fmt: skip
        return advantage(stream)

    combined = combine(
        {name: of_signal(name) for name in config.signals if name not in config.constraints},
        {name: signal.weight for name, signal in config.signals.items()},
        {name: of_signal(name) for name in config.constraints},
        dict(zip(("a", "b"), prices, strict=True)),
        plain=combination == "plain",
    )
    torch.testing.assert_close(combined, advantage(-0.3 * (ours - reference)), rtol=1e-8, atol=1e-9)


def test_a_cost_step_of_crpo_is_the_cost_alone_and_a_reward_step_the_reward_alone():
    reward, cost = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0])
    assert combine({"r": reward}, {"r": 2.0}, {"c": cost}, {"c": 1.0}, objective_share=0.0).tolist() == [-3.0, 4.0]
    assert combine({"r": reward}, {"r": 2.0}, {"c": cost}, {"c": 0.0}).tolist() == [2.0, 4.0]


def test_a_plain_combination_is_reward_shaping():
    reward, cost = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0])
    assert combine({"r": reward}, {"r": 1.0}, {"c": cost}, {"c": 2.0}, plain=True).tolist() == [-5.0, 10.0]


@pytest.mark.parametrize(
    ("options", "in_reward"),
    [
        ({}, True),
        ({"whiten": True}, False),
        ({"estimator": "leave_one_out"}, True),
        ({"estimator": "group_relative"}, False),
        ({"estimator": "group_relative", "group_std": False}, True),
        ({"estimator": "reinforce_pp"}, False),
        ({"estimator": "reinforce_pp", "kl_placement": "reward"}, True),
        ({"kl_placement": "loss"}, False),
    ],
)
def test_auto_keeps_the_penalty_out_of_advantages_that_are_rescaled(options, in_reward):
    config = RLHF(
        steps=1, samples_per_prompt=2, signals={"help": Signal(role="objective", model="r")}, advantage=options
    )
    assert config.advantage.kl_in_reward is in_reward
    assert config.kl_share("help") == (1.0 if in_reward else 0.0)
