"""The loss of an update and its figures: worked by hand, and the same however a mini-batch is cut."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from castor.algorithms.policy_loss import PolicyLoss
from castor.config.learner import Learner

LOG = {half: math.log(half) for half in (0.25, 0.4, 0.5, 0.8)}


def flat(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_two_responses_by_hand():
    """Lengths 1 and 2. The first token's ratio, 1.25, is clipped to 1.2; the last one's, 0.5, is not, as its advantage
    wants it there.
    """
    loss = PolicyLoss(Learner(), kl_coeff=0.1, own_old=False, fresh=True, sequences=2, tokens=3)
    columns = {
        "logprobs": flat(LOG[0.4], LOG[0.5], LOG[0.5]),
        "reference": flat(LOG[0.5], LOG[0.25], LOG[0.25]),
        "advantages": flat(1.0, 2.0, 3.0),
        "fresh": flat(1.0, 1.0, 0.0),
    }
    logprobs = flat(LOG[0.5], LOG[0.5], LOG[0.25])
    total = loss.add(logprobs, torch.tensor([1, 2]), columns)
    surrogate = (-1.2 + (-2.0 - 1.5) / 2) / 2
    kl_loss = (0.0 + (0.5 + math.log(2.0) - 1.0 + 0.0) / 2) / 2
    assert float(total) == pytest.approx(surrogate + 0.1 * kl_loss)
    assert loss.sums == pytest.approx(
        {
            "loss": surrogate,
            "kl_loss": kl_loss,
            "clipped": 2.0,
            "bounded": 0.0,
            "logprob": float(logprobs.sum()),
            "gap": math.log(1.25),  # the last token was sampled by older weights
            "fresh": 2.0,
        }
    )
    assert loss.maxima == pytest.approx({"gap_max": math.log(1.25)})


def test_the_learners_own_old_logprobs_are_weighted_by_the_truncated_ratio_to_the_samplers():
    learner = Learner(importance_cap=1.5)
    loss = PolicyLoss(learner, kl_coeff=0.0, own_old=True, fresh=False, sequences=1, tokens=2)
    columns = {
        "logprobs": flat(LOG[0.25], LOG[0.5]),
        "proximal": flat(LOG[0.5], LOG[0.4]),  # ratios of 2, truncated to 1.5, and of 0.8
        "advantages": flat(1.0, -1.0),
    }
    total = loss.add(flat(LOG[0.5], LOG[0.4]), torch.tensor([2]), columns)
    assert float(total) == pytest.approx((-1.5 + 0.8) / 2)
    assert loss.sums["importance_mean"] == pytest.approx(2.8)
    assert loss.sums["importance_truncated_share"] == 1.0
    assert loss.maxima == pytest.approx({"gap_max": math.log(2.0), "importance_max": 2.0})


@given(st.data())
def test_loss_gradient_and_figures_do_not_depend_on_the_cut(data):
    """Of three responses with every term on, in one micro-batch, or in two."""
    learner = Learner(entropy_coeff=0.1, loss_normalization=data.draw(st.sampled_from(["sequence", "token"])))
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=3)))
    made = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    total = int(lengths.sum())
    columns = {
        name: torch.randn(total, generator=made, dtype=torch.float64)
        for name in ("logprobs", "reference", "advantages", "proximal")
    }
    columns["fresh"] = (torch.rand(total, generator=made) < 0.5).double()
    output = torch.randn(2, total, generator=made, dtype=torch.float64, requires_grad=True)

    def over(pieces):
        loss = PolicyLoss(learner, kl_coeff=0.2, own_old=True, fresh=True, sequences=3, tokens=total)
        ends = torch.cumsum(lengths, 0).tolist()
        whole = output.new_zeros(())
        for first, last in pieces:
            start, end = ([0, *ends])[first], ends[last - 1]
            part = {name: values[start:end] for name, values in columns.items()}
            whole = whole + loss.add(output[:, start:end], lengths[first:last], part)
        (gradient,) = torch.autograd.grad(whole, output)
        return whole.detach(), gradient, loss

    cut = data.draw(st.integers(1, 2))
    one, two = over([(0, 3)]), over([(0, cut), (cut, 3)])
    torch.testing.assert_close(two[:2], one[:2])
    assert two[2].sums == pytest.approx(one[2].sums)
    assert two[2].maxima == one[2].maxima
