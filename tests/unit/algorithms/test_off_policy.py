"""Truncated importance sampling around the decoupled loss, against its formula in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from castor.algorithms.losses import clipped_policy_loss
from castor.algorithms.off_policy import importance_ratio, truncated_importance_weights
from castor.algorithms.ragged import token_weights
from castor.config.learner import Learner
from castor.config.rlhf import RLHF
from castor.config.rollout import Rollout
from castor.config.signal import Signal
from castor.config.training import Engine, Resources

seeds = st.integers(0, 2**31 - 1)
ragged = st.lists(st.integers(1, 6), min_size=1, max_size=8)
CLIP = 0.2


def policies(seed, count):
    """Log-probabilities of the updated, the proximal and the behaviour policy, and advantages: float64 [count]."""
    rng = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(count, generator=rng, dtype=torch.float64) for scale in (0.6, 0.6, 0.6, 1.0)]


def naive_loss(new, proximal, behaviour, advantage, cap):
    ratio = math.exp(new) / math.exp(proximal)
    clipped = min(max(ratio, 1 - CLIP), 1 + CLIP)
    return -min(math.exp(proximal) / math.exp(behaviour), cap) * min(ratio * advantage, clipped * advantage)


def slope(function, value, step=1e-6):
    return (function(value + step) - function(value - step)) / (2 * step)


@settings(deadline=None)
@given(seeds, ragged, st.sampled_from([1.0, 1.5, 5.0, 1e9]))
def test_values_and_gradients_of_ragged_batches(seed, lengths, cap):
    count = sum(lengths)
    new, proximal, behaviour, advantages = policies(seed, count)
    new.requires_grad_()
    proximal.requires_grad_()
    weights = token_weights(torch.tensor(lengths), "sequence", len(lengths), count, torch.float64)
    correction = truncated_importance_weights(importance_ratio(proximal, behaviour), cap)
    losses = correction * clipped_policy_loss(new, proximal.detach(), advantages, CLIP)
    (weights * losses).sum().backward()
    expected = 0.0
    for i, owner in enumerate(n for n in lengths for _ in range(n)):
        fixed = proximal[i].item(), behaviour[i].item(), advantages[i].item(), cap
        share = 1 / (owner * len(lengths))
        expected += share * naive_loss(new[i].item(), *fixed)
        slopes = [slope(lambda x, fixed=fixed: naive_loss(x, *fixed), new[i].item() + d) for d in (-1e-5, 1e-5)]
        if abs(slopes[0] - slopes[1]) < 1e-3:  # not at a kink
            central = slope(lambda x, fixed=fixed: naive_loss(x, *fixed), new[i].item())
            assert new.grad[i].item() == pytest.approx(share * central, abs=1e-6, rel=1e-6)
    assert (weights * losses).sum().item() == pytest.approx(expected, abs=1e-9, rel=1e-9)
    assert proximal.grad is None  # the correction is a weight, not something to learn through


@settings(deadline=None)
@given(seeds, ragged)
def test_tokens_of_the_weights_before_the_update_are_left_as_they_are(seed, lengths):
    new, proximal, _, advantages = policies(seed, sum(lengths))
    correction = truncated_importance_weights(importance_ratio(proximal, proximal), Learner().importance_cap)
    corrected = correction * clipped_policy_loss(new, proximal, advantages, CLIP)
    assert torch.equal(corrected, clipped_policy_loss(new, proximal, advantages, CLIP))


def test_without_truncation_the_mean_over_the_behaviour_policy_is_the_mean_over_the_proximal_one():
    behaviour, proximal, values = (torch.rand(3, 5, dtype=torch.float64) + 0.1).unbind()
    behaviour, proximal = behaviour / behaviour.sum(), proximal / proximal.sum()
    ratio = importance_ratio(proximal.log(), behaviour.log())
    assert float((behaviour * ratio * values).sum()) == pytest.approx(float((proximal * values).sum()), abs=1e-12)
    short = truncated_importance_weights(ratio, 1.0)
    assert short.max() <= 1.0
    assert torch.equal(short[ratio < 1], ratio[ratio < 1])


def test_staleness_is_a_number_from_zero_and_a_cap_at_least_one():
    assert Rollout().max_staleness == 0
    assert Rollout(max_staleness=3, on_new_weights="continue").on_new_weights == "continue"
    for section, key, value in ((Rollout, "max_staleness", -1), (Rollout, "on_new_weights", "abort")):
        with pytest.raises(ValidationError):
            section(**{key: value})
    with pytest.raises(ValidationError):
        Learner(importance_cap=0.9)


def run(max_staleness, gpus, old_logprobs):
    signals = {"help": Signal(role="objective", model="unused", critic=Engine())}
    learner = Learner(old_logprobs=old_logprobs, resources=Resources(gpus=gpus))
    return RLHF(steps=1, signals=signals, learner=learner, rollout=Rollout(max_staleness=max_staleness))


@pytest.mark.parametrize("gpus", [0, 0.5, 1])
@pytest.mark.parametrize("max_staleness", [0, 1])
def test_the_learners_log_probabilities_are_the_old_ones_on_gpus_and_with_overlap(max_staleness, gpus):
    assert run(max_staleness, gpus, "auto").own_old_logprobs == (max_staleness > 0 or gpus > 0)
    assert run(max_staleness, gpus, "learner").own_old_logprobs
    if max_staleness:
        with pytest.raises(ValidationError, match="remove old_logprobs, or set it to learner"):
            run(max_staleness, gpus, "rollout")
    else:
        assert not run(max_staleness, gpus, "rollout").own_old_logprobs
