"""What a constraint measures, its bounds against independent formulas, and which configs make sense."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from castor.algorithms.constraints import Limit, mean, normal_upper, policy_costs, share, wilson_upper
from castor.config.multipliers import Constraint, Multipliers
from castor.config.rlhf import RLHF
from castor.config.signal import Signal

windows = st.lists(st.floats(-8, 8), min_size=2, max_size=40)


@given(windows, st.floats(0.6, 0.999))
def test_the_bound_of_a_mean_is_the_normal_one(costs, confidence):
    center = sum(costs) / len(costs)
    deviation = math.sqrt(sum((cost - center) ** 2 for cost in costs) / (len(costs) - 1))
    expected = center + stats.norm.ppf(confidence) * deviation / math.sqrt(len(costs))
    assert normal_upper(costs, confidence) == pytest.approx(expected, abs=1e-9)
    assert Limit(0.25, "mean", confidence).violation(costs) == pytest.approx(expected - 0.25, abs=1e-9)


@given(st.integers(1, 60), st.data(), st.floats(0.6, 0.999))
def test_the_bound_of_a_share_solves_the_score_equation(count, data, confidence):
    """Wilson's upper bound is the larger p at which (p̂ - p) sqrt(n) / sqrt(p (1 - p)) is minus the normal quantile."""
    successes = data.draw(st.integers(0, count))
    z, observed = stats.norm.ppf(confidence), successes / count
    bound = wilson_upper(successes, count, confidence)
    if successes == count:
        assert bound == pytest.approx(1.0)
        return
    expected = optimize.brentq(
        lambda p: (p - observed) * math.sqrt(count) - z * math.sqrt(p * (1 - p)),
        observed + 1e-12,
        1 - 1e-15,
        xtol=1e-14,
    )
    assert bound == pytest.approx(expected, abs=1e-6)


def test_a_worked_share_bound():
    # no unsafe response among 100 is not proof of none: z² / (n + z²) = 2.7055 / 102.7055
    assert wilson_upper(0, 100, 0.95) == pytest.approx(0.026342, abs=1e-6)


@given(windows)
def test_zero_is_the_boundary_and_a_cost_of_zero_is_safe(costs):
    unsafe = sum(cost > 0 for cost in costs)
    assert share(costs) == pytest.approx(unsafe / len(costs), abs=1e-12)
    assert share([*costs, 0.0]) == pytest.approx(unsafe / (len(costs) + 1), abs=1e-12)
    scores = torch.tensor([*costs, 0.0], dtype=torch.float64)
    assert torch.equal(policy_costs(scores, policy_cost="score", rectified_above=None), scores)
    indicator = policy_costs(scores, policy_cost="indicator", rectified_above=None)
    assert indicator.tolist() == [float(cost > 0) for cost in [*costs, 0.0]]
    assert indicator.mean() == pytest.approx(share([*costs, 0.0]))


@given(windows, st.floats(-3, 1))
def test_the_rectified_cost_is_what_exceeds_the_limit(costs, limit):
    rectified = policy_costs(
        torch.tensor(costs, dtype=torch.float64), policy_cost="score", rectified_above=limit
    ).tolist()
    assert rectified == [cost - limit if cost > limit else 0.0 for cost in costs]


def test_the_limit_is_minus_d_and_confidence_only_tightens():
    costs = [-0.4, 0.0, -0.2]  # E[C] = -0.2; d = 0.5 asks for E[C] + 0.5 <= 0
    assert Limit(-0.5).violation(costs) == pytest.approx(0.3)
    assert Limit(0.0).violation(costs) == pytest.approx(-0.2)
    for statistic in ("mean", "share"):
        assert Limit(0.0, statistic, 0.9).violation(costs) > Limit(0.0, statistic).violation(costs)


def test_too_few_costs_have_no_statistic():
    for measure in (
        mean,
        share,
        lambda costs: wilson_upper(0, len(costs), 0.9),
        lambda costs: normal_upper(costs, 0.9),
    ):
        with pytest.raises(ValueError, match="empty"):
            measure([])
    with pytest.raises(ValueError, match="single cost"):
        normal_upper([1.0], 0.9)


OBJECTIVE = Signal(role="objective", model="r")
SHARE = {"statistic": "share"}


def rlhf(constraint=None, **run):
    harm = {"role": "constraint", "model": "c", "threshold": 0.0, **(constraint or {})}
    run = {"steps": 1, "multipliers": Multipliers(), **run}
    return RLHF(signals={"help": OBJECTIVE, "harm": harm}, **run)


@pytest.mark.parametrize(
    ("constraint", "run", "finding"),
    [
        ({"constraint": SHARE}, {}, "limited by unsafe_share"),
        ({"constraint": SHARE, "threshold": None, "unsafe_share": 0.1}, {}, None),
        ({"threshold": None, "unsafe_share": 0.1}, {}, None),
        ({"constraint": {"confidence": 0.95}}, {"prompts_per_step": 1}, "a single cost has no confidence bound"),
        ({"constraint": {"confidence": 0.4}}, {}, "greater than 0.5"),
        ({"constraint": SHARE, "threshold": None, "unsafe_share": 0.1}, {"multipliers": {"rule": "rectified"}},
         "rule rectified brings its own statistic"),
        ({"multiplier": {"rule": "none"}}, {}, None),
        ({"multiplier": {"rule": "fixed"}}, {"multipliers": None}, None),
        ({}, {"multipliers": None}, "constraint 'harm' has no price"),
        ({"role": "objective", "threshold": None, "multiplier": {}}, {}, "an objective has no multiplier"),
        ({"role": "objective", "threshold": None, "constraint": SHARE}, {}, "an objective has no constraint"),
        ({}, {"multipliers": {"rule": "crpo"}, "advantage": {"combination": "plain"}}, "crpo has no prices to combine"),
        ({"critic": None}, {}, "signal 'harm' has no critic, which estimator gae needs"),
        ({"critic": None, "multiplier": {"rule": "none"}}, {}, None),
        ({}, {"advantage": {"estimator": "leave_one_out"}}, "set samples_per_prompt to 2"),
        ({"critic": None}, {"advantage": {"estimator": "leave_one_out"}, "samples_per_prompt": 2}, None),
        ({}, {"advantage": {"estimator": "reinforce_pp", "gae_lambda": 0.9}}, "reinforce_pp has no gae_lambda"),
        ({}, {"advantage": {"group_std": False}}, "estimator gae has no group_std"),
        ({}, {"advantage": {"estimator": "reinforce_pp", "whiten": True}}, "whitens by itself"),
        ({}, {"advantage": {"kl_horizon": 5}}, "kl_horizon without kl_target"),
        ({}, {"advantage": {"kl_target": 3.0, "kl_coeff": 0.0}}, "start it above 0"),
    ],
)  # fmt: skip
def test_contradictions_are_named(constraint, run, finding):
    if finding is None:
        rlhf(constraint, **run)
    else:
        with pytest.raises(ValueError, match=finding):
            rlhf(constraint, **run)


def test_crpo_shares_a_run_only_with_constraints_that_are_watched():
    def run(rule):
        other = {"role": "constraint", "model": "c", "threshold": 0.0, "multiplier": {"rule": rule}}
        harm = {"role": "constraint", "model": "c", "threshold": 0.0}
        return RLHF(
            steps=1, signals={"help": OBJECTIVE, "harm": harm, "other": other}, multipliers=Multipliers(rule="crpo")
        )

    assert [run("none").trains_policy(name) for name in ("help", "harm", "other")] == [True, True, False]
    with pytest.raises(ValueError, match="crpo takes turns and cannot share a step with rule pid"):
        run("pid")


def test_who_has_a_critic():
    def critics(config):
        return [config.has_critic(name) for name in config.signals]

    assert critics(rlhf()) == [True, True]
    assert critics(rlhf({"multiplier": {"rule": "none"}})) == [True, False]
    assert critics(rlhf(advantage={"estimator": "group_relative"}, samples_per_prompt=2)) == [False, False]


def test_a_section_that_says_nothing_is_the_mean_of_the_costs():
    assert Limit.of(Constraint(), -0.5) == Limit(-0.5, "mean", None)
