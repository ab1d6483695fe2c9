"""The numbers that an RLHF run with real engines logs."""

import math

import pytest
import torch

from castor.config.multipliers import Multipliers
from tests.chaos.rlhf_run import STEPS
from tests.numerics import TINY_MODELS, tolerance


def test_the_price_in_the_log_is_the_rule_applied_to_the_logged_costs(undisturbed):
    rule = Multipliers()
    log_price = torch.tensor(0.5).log().requires_grad_()
    adam = torch.optim.Adam([log_price], lr=0.5, betas=rule.lambda_betas)
    costs = [step["mean_costs"]["harm"] for step in undisturbed[0]]
    assert len(costs) == STEPS
    for number, step in enumerate(undisturbed[0]):
        window = sum(costs[max(number - 1, 0) : number + 1]) / min(number + 1, 2)  # of 16 costs: two steps
        assert step["window_costs"]["harm"] == pytest.approx(window, abs=tolerance(3.0, 16))  # costs up to 3
        adam.zero_grad()
        (-log_price * (window + 0.2)).backward()
        adam.step()
        with torch.no_grad():
            log_price.clamp_(max=math.log(rule.lambda_max))
        assert step["multipliers"]["harm"] == pytest.approx(float(log_price.exp().detach()), rel=1e-4)


def test_every_step_trains_on_fresh_weights_and_all_responses(undisturbed):
    metrics = [step["metrics"] for step in undisturbed[0]]
    for each in metrics:
        assert each["logprob_gap_mean"] < tolerance(6.0, TINY_MODELS)  # of log-probabilities of about -6
        assert each["response_tokens"] == pytest.approx(8 * each["response_length"])
    assert metrics[0]["kl"] == pytest.approx(0.0, abs=1e-3)
    assert abs(metrics[2]["kl"]) > 1e-3
