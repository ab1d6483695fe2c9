"""Every multiplier rule against a reference in float64, over a restart, and on a bandit with a known optimum."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from castor.algorithms.constraints import Limit, mean, normal_upper, share
from castor.algorithms.multipliers import MultiplierState, initial_state, update, violated
from castor.config.multipliers import LARGEST, RULE_KEYS, Multipliers
from tests.unit.algorithms import bandit

RULES = sorted(RULE_KEYS)
costs_of_a_step = st.lists(st.floats(-8, 8), min_size=2, max_size=5)
runs = st.lists(costs_of_a_step, min_size=1, max_size=12)
# one config per rule, with every key of the rule away from its default
CONFIGS = {
    "sgd_log": Multipliers(rule="sgd_log", lambda_init=0.5, lambda_lr=0.3, lambda_min=0.05, lambda_max=3.0),
    "adam_log": Multipliers(rule="adam_log", lambda_init=0.5, lambda_lr=0.2, lambda_betas=(0.8, 0.95), lambda_max=3.0),
    "projected": Multipliers(rule="projected", lambda_init=0.5, lambda_lr=0.2, lambda_min=0.1, lambda_max=3.0),
    "pid": Multipliers(rule="pid", lambda_init=0.2, pid_kp=0.3, pid_ki=0.05, pid_kd=0.4, pid_smoothing=0.7),
    "rectified": Multipliers(rule="rectified", lambda_init=0.0, lambda_lr=0.2, lambda_max=4.0),
    "crpo": Multipliers(rule="crpo", tolerance=0.5),
    "fixed": Multipliers(rule="fixed", lambda_init=2.0),
    "none": Multipliers(rule="none"),
}


def torch_log_space(optimizer_of, objective):
    """Ascent of violation · objective(log λ) by an optimiser of torch, with the clamp after its step."""

    def prices(windows, limit, config):
        log_lambda = torch.tensor(math.log(config.lambda_init), dtype=torch.float64, requires_grad=True)
        optimizer = optimizer_of(log_lambda, config)
        for window in windows:
            optimizer.zero_grad()
            (-(mean(window) - limit) * objective(log_lambda)).backward()
            optimizer.step()
            with torch.no_grad():
                log_lambda.clamp_(
                    math.log(config.lambda_min) if config.lambda_min else -math.inf, math.log(config.lambda_max)
                )
            yield log_lambda.exp().item()

    return prices


def adam(parameter, config):
    return torch.optim.Adam([parameter], lr=config.lambda_lr, betas=config.lambda_betas, eps=1e-8)


def sgd(parameter, config):
    return torch.optim.SGD([parameter], lr=config.lambda_lr)


def projected(windows, limit, config):
    price = config.lambda_init
    for window in windows:
        price = min(max(price + config.lambda_lr * (mean(window) - limit), config.lambda_min), config.lambda_max)
        yield price


def rectified(windows, limit, config):
    price = config.lambda_init
    for window in windows:
        excess = 0.0
        for cost in window:
            excess += cost - limit if cost > limit else 0.0
        price = min(price + config.lambda_lr * excess / len(window), config.lambda_max)
        yield price


def pid(windows, limit, config):
    """Stooke et al. 2020, algorithm 2, on the history of violations instead of on a running state."""
    errors = [mean(window) - limit for window in windows]
    integral, a = config.lambda_init, config.pid_smoothing
    for t, error in enumerate(errors):
        integral = min(max(integral + config.pid_ki * error, 0.0), config.lambda_max)
        smooth = [
            a**k * errors[0] + sum((1 - a) * a ** (k - j) * errors[j] for j in range(1, k + 1)) for k in (t - 1, t)
        ]
        rise = max(0.0, smooth[1] - smooth[0]) if t else 0.0
        price = config.pid_kp * smooth[1] + integral + config.pid_kd * rise
        yield min(max(price, config.lambda_min), config.lambda_max)


REFERENCES = {
    "sgd_log": torch_log_space(sgd, torch.exp),
    "adam_log": torch_log_space(adam, lambda log_lambda: log_lambda),
    "projected": projected,
    "pid": pid,
    "rectified": rectified,
    "fixed": lambda windows, limit, config: [config.lambda_init] * len(windows),
    "none": lambda windows, limit, config: [0.0] * len(windows),
    "crpo": lambda windows, limit, config: [0.0] * len(windows),
}


def windows_of(steps, size):
    seen = []
    for costs in steps:
        seen += costs
        yield seen[-size:]


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40)
@given(runs, st.floats(-3, 1), st.integers(2, 9))
def test_every_rule_equals_its_reference(rule, steps, limit, window):
    config = CONFIGS[rule].model_copy(update={"episode_cost_window_size": window})
    state = initial_state(config)
    windows = list(windows_of(steps, window))
    for costs, expected in zip(steps, REFERENCES[rule](windows, limit, config), strict=True):
        state = update(state, costs, Limit(limit), config)
        assert state.value == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert state.value >= 0


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40)
@given(runs, st.data(), st.floats(-3, 1), st.sampled_from(["mean", "share"]), st.sampled_from([None, 0.95]))
def test_a_restart_changes_nothing(rule, steps, data, limit, statistic, confidence):
    """The state is JSON values, and going on from them is the same to the last bit."""
    config, bound = CONFIGS[rule], Limit(limit, statistic, confidence)
    cut = data.draw(st.integers(0, len(steps)))
    whole = parted = initial_state(config)
    for number, costs in enumerate(steps):
        if number == cut:
            parted = MultiplierState.from_json(json.loads(json.dumps(parted.to_json(), allow_nan=False)))
        whole, parted = update(whole, costs, bound, config), update(parted, costs, bound, config)
    assert parted == whole


any_cost = st.floats(width=32, allow_nan=False, allow_infinity=False)
EXTREME = {
    **{rule: Multipliers(rule=rule, lambda_max=LARGEST, lambda_lr=LARGEST) for rule in ("sgd_log", "adam_log")},
    **{rule: Multipliers(rule=rule, lambda_max=None, lambda_lr=LARGEST) for rule in ("projected", "rectified")},
    "pid": Multipliers(rule="pid", lambda_max=None, pid_kp=LARGEST, pid_ki=LARGEST, pid_kd=LARGEST),
}


@pytest.mark.parametrize("configs", [CONFIGS, EXTREME], ids=["usual", "extreme"])
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60)
@given(
    steps=st.lists(st.lists(any_cost, min_size=2, max_size=4), min_size=1, max_size=30),
    limit=any_cost,
    confidence=st.sampled_from([None, 0.95]),
)
def test_no_rule_overflows_on_any_finite_costs(rule, configs, steps, limit, confidence):
    config = configs.get(rule, CONFIGS[rule]).model_copy(update={"episode_cost_window_size": 3})
    state = initial_state(config)
    for costs in steps:
        state = update(state, costs, Limit(limit, "mean", confidence), config)
        assert 0 <= state.value <= LARGEST * (1 + 1e-12)  # exp(log λ) may exceed λ in the last bits
        json.dumps([state.to_json(), state.telemetry()], allow_nan=False)


@pytest.mark.parametrize("rule", ["sgd_log", "adam_log", "projected", "pid"])
def test_a_limit_that_is_violated_for_ever_ends_at_the_maximum(rule):
    """At a violation of 1 an unbounded sgd_log of lr 0.4 goes 1.49, 2.71, 8, 197, 3.5e36, overflow."""
    config = Multipliers(
        **{"rule": rule, **({"pid_ki": 0.4} if rule == "pid" else {"lambda_lr": 0.4})}, episode_cost_window_size=1
    )
    state = initial_state(config)
    for _ in range(500):
        state = update(state, [1.0], Limit(0.0), config)
    assert state.value == pytest.approx(5.0, rel=1e-12)


def test_a_step_of_adam_is_its_learning_rate_whatever_lambda_and_the_violation_are():
    for size in (0.01, 1.0, 30.0):
        config = Multipliers(rule="adam_log", lambda_lr=0.1, episode_cost_window_size=1)
        state = initial_state(config)
        for _ in range(500):
            before, state = state, update(state, [-size], Limit(0.0), config)
            assert math.log(before.value) - math.log(state.value) == pytest.approx(0.1, rel=1e-4)
        for _ in range(50):  # 0.00003 with a gradient that has the factor λ
            before, state = state, update(state, [size], Limit(0.0), config)
        assert math.log(state.value) - math.log(before.value) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("rule", RULES)
def test_telemetry_counts_violated_steps_and_sums_regret(rule):
    config = CONFIGS[rule].model_copy(update={"episode_cost_window_size": 2})
    state = initial_state(config)
    with pytest.raises(ValueError, match="no telemetry"):
        state.telemetry()
    for costs in ([2.0, 1.0], [-2.0, -1.0], [0.0, 1.0], [0.0, 0.0]):  # violations 1, -2, 0, -0.5 of the limit 0.5
        state = update(state, costs, Limit(0.5), config)
    assert state.telemetry() == {
        "lambda": state.value,
        "window_mean": 0.0,
        "window_unsafe_share": 0.0,
        "violation": -0.5,
        "time_in_violation": 0.25,
        "regret": 1.0,
    }


def test_a_floor_keeps_lambda_from_collapsing():
    """The standing complaint about log space: λ that has shrunk recovers slowly. With a floor it is back in a step."""
    config = Multipliers(lambda_init=1.0, lambda_lr=0.5, lambda_min=0.2, episode_cost_window_size=1)
    state = initial_state(config)
    for _ in range(200):
        state = update(state, [-1.0], Limit(0.0), config)
    assert state.value == pytest.approx(0.2)
    assert update(state, [1.0], Limit(0.0), config).value == pytest.approx(0.2 * math.exp(0.1))


def test_pid_brakes_a_rising_cost_before_it_violates_and_never_winds_up():
    config = Multipliers(
        rule="pid", lambda_init=0.0, pid_kp=0.0, pid_ki=0.1, pid_kd=1.0, pid_smoothing=0.0, lambda_max=2.0,
        episode_cost_window_size=1,
    )  # fmt: skip
    state = update(initial_state(config), [-3.0], Limit(0.0), config)
    assert state.value == 0.0
    assert update(state, [-1.0], Limit(0.0), config).value == 2.0  # the rise of 2, though still within the limit
    for _ in range(100):
        state = update(state, [5.0], Limit(0.0), config)
    assert state.value == 2.0
    assert update(state, [-5.0], Limit(0.0), config).value == 1.5  # the integral stopped at 2: it falls at once


def test_crpo_takes_the_constraint_furthest_beyond_its_tolerance():
    tolerances = {"a": 0.1, "b": 0.5, "c": 0.0}
    assert violated({"a": 0.1, "b": 0.5, "c": 0.0}, tolerances) is None
    assert violated({"a": 0.3, "b": 0.6, "c": -1.0}, tolerances) == "a"
    assert violated({"a": 0.3, "b": 0.9, "c": 0.0}, tolerances) == "b"
    assert violated({}, {}) is None


@pytest.mark.parametrize("plain", [False, True], ids=["normalized", "plain"])
@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "sgd_log", "lambda_lr": 0.02},
        {"rule": "adam_log", "lambda_lr": 0.002},
        {"rule": "projected", "lambda_lr": 0.01},
        {"rule": "pid", "pid_kp": 0.3, "pid_ki": 0.01, "pid_kd": 0.5},
    ],
    ids=lambda rule: rule["rule"],
)
def test_the_bandit_is_solved_with_its_multiplier(rule, plain):
    policies, prices = bandit.play({"harm": Multipliers(**rule, episode_cost_window_size=1)}, plain=plain)
    assert float(policies[-1, 1]) == pytest.approx(bandit.OPTIMAL_SHARE, abs=1e-5)
    assert float(prices["harm"][-1]) == pytest.approx(bandit.optimal_multiplier(plain=plain), abs=1e-5)


@pytest.mark.parametrize("plain", [False, True], ids=["normalized", "plain"])
def test_prices_that_do_not_move_give_their_own_optimum(plain):
    optimal = bandit.optimal_multiplier(plain=plain)
    assert bandit.share_at(optimal, plain=plain) == pytest.approx(bandit.OPTIMAL_SHARE)
    for price in (optimal, 0.2, 1.5):  # too cheap is violated, too dear is lopsided
        policies, _ = bandit.play({"harm": Multipliers(rule="fixed", lambda_init=price)}, plain=plain, steps=1000)
        assert float(policies[-1, 1]) == pytest.approx(bandit.share_at(price, plain=plain), abs=1e-6)
    policies, _ = bandit.play({"harm": Multipliers(rule="none")}, plain=plain, steps=500)
    assert float(policies[-1, 1]) == pytest.approx(bandit.share_at(0.0, plain=plain), abs=1e-6)


def test_rectified_presses_until_its_maximum_and_then_on_the_excess_alone():
    """No policy of full support has E{C - d}+ = 0, so λ ends at its maximum; the safe arm's credit counts nothing."""
    config = Multipliers(
        rule="rectified", lambda_init=0.0, lambda_lr=0.01, lambda_max=1.5, episode_cost_window_size=1000
    )
    policies, prices = bandit.play({"harm": config}, steps=1000)
    assert (prices["harm"].diff() >= 0).all()
    assert float(prices["harm"][-1]) == 1.5
    excess = float(bandit.COSTS[1]) - bandit.LIMIT  # {C - d}+ of the unsafe arm; 0 of the safe one
    assert float(policies[-1, 1]) == pytest.approx(bandit.share_at(1.5, plain=False, delta_cost=excess), abs=1e-6)


def test_crpo_holds_the_limit_and_earns_the_reward_it_allows():
    policies, prices = bandit.play(
        {"harm": Multipliers(rule="crpo", episode_cost_window_size=1)}, rate=0.05, steps=1000
    )
    assert set(prices["harm"].tolist()) == {0.0, 1.0}
    tail = policies[-500:, 1]
    assert float(tail.mean()) == pytest.approx(bandit.OPTIMAL_SHARE, abs=2e-3)
    assert float((tail - bandit.OPTIMAL_SHARE).abs().max()) < 0.01  # turns are steps of finite size


def test_pid_overshoots_less_than_ascent_with_the_same_integral_gain():
    """Over the default window of 128 steps the cost is seen late, which is what makes plain ascent swing."""
    ascent = Multipliers(rule="projected", lambda_init=0.1, lambda_lr=0.05)
    sgd_log = Multipliers(rule="sgd_log", lambda_init=0.1, lambda_lr=0.05)
    damped = Multipliers(rule="pid", lambda_init=0.1, pid_ki=0.05, pid_kp=0.5, pid_kd=1.0)
    optimal = bandit.optimal_multiplier(plain=False)

    def behaviour(config):
        policies, prices = bandit.play({"harm": config}, steps=600)
        violation = policies @ bandit.COSTS - bandit.LIMIT
        return float(prices["harm"].max()) - optimal, float(violation[-200:].abs().max()), float(violation.relu().sum())

    for plain_rule in (ascent, sgd_log):
        for mine, other in zip(behaviour(damped), behaviour(plain_rule), strict=True):
            assert mine < 0.7 * other  # the peak of λ over λ*, the oscillation left at the end, the regret


def test_each_constraint_keeps_its_own_limit_under_its_own_rule():
    """Three arms; p1 and p2 follow from the two limits, and the prices from the log-odds against the harmless arm."""
    costs = {
        "a": torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64),
        "b": torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64),
    }
    rewards = torch.tensor([0.0, 1.0, 1.5], dtype=torch.float64)
    limits = {"a": 2 * 0.2 - 1, "b": 2 * 0.1 - 1}
    rules = {
        "a": Multipliers(rule="projected", lambda_lr=0.01, episode_cost_window_size=1),
        "b": Multipliers(rule="pid", pid_ki=0.01, pid_kp=0.3, episode_cost_window_size=1),
    }
    policies, prices = bandit.play(rules, rewards=rewards, costs=costs, limits=limits, plain=True, steps=4000)
    torch.testing.assert_close(policies[-1], torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), rtol=0, atol=1e-5)
    for name, reward, part in (("a", 1.0, 0.2), ("b", 1.5, 0.1)):
        expected = (reward - bandit.BETA * math.log(part / 0.7)) / 2.0
        assert float(prices[name][-1]) == pytest.approx(expected, abs=1e-4)


def test_a_share_constraint_and_a_confidence_bound_price_the_same_costs_differently():
    """A mean that holds while half the responses are unsafe (issue 43 of the reference) does not satisfy a share."""
    config = Multipliers(rule="projected", lambda_init=1.0, lambda_lr=0.1)
    costs = [0.5] * 50 + [-0.6] * 50
    assert update(initial_state(config), costs, Limit(0.0), config).value < 1.0
    assert update(initial_state(config), costs, Limit(0.1, "share"), config).value == pytest.approx(1.0 + 0.1 * 0.4)
    assert share(costs) == 0.5
    bounded = update(initial_state(config), costs, Limit(0.0, "mean", 0.95), config)
    assert mean(costs) < 0 < normal_upper(costs, 0.95)  # met by the point estimate, not yet with confidence
    assert bounded.violation == pytest.approx(normal_upper(costs, 0.95))


@pytest.mark.parametrize(
    ("keys", "finding"),
    [
        ({"rule": "fixed", "lambda_lr": 0.2}, "rule fixed has no lambda_lr.*its own keys: .*lambda_init"),
        ({"rule": "none", "lambda_init": 2.0}, "rule none has no lambda_init"),
        ({"rule": "crpo", "lambda_init": 0.5}, "rule crpo has no lambda_init"),
        ({"pid_kp": 0.5}, "rule sgd_log has no pid_kp"),
        ({"rule": "rectified", "lambda_min": 0.1}, "rule rectified has no lambda_min"),
        ({"lambda_init": 0.0}, "moves log λ and cannot start at 0"),
        ({"lambda_init": 9.0}, r"lambda_max \(5\) is below lambda_init \(9\)"),
        ({"lambda_init": 0.5, "lambda_min": 0.6}, r"lambda_min \(0.6\) is above lambda_init \(0.5\)"),
        ({"rule": "pid", "pid_kp": 0, "pid_ki": 0, "pid_kd": 0}, "gains are all 0"),
        ({"rule": "adam_log", "lambda_betas": (0.9, 1.0)}, "must lie in"),
        ({"rule": "sgd_log", "lambda_max": None}, "sgd_log moves log λ.*needs a lambda_max"),
        ({"rule": "adam_log", "lambda_max": None}, "adam_log moves log λ.*needs a lambda_max"),
        ({"lambda_max": 1e7}, "less than or equal to 1000000"),
        ({"lambda_lr": 1e7}, "less than or equal to 1000000"),
        ({"rule": "projected", "lambda_max": None}, None),
        ({"rule": "fixed", "lambda_init": 100.0}, None),
        ({"rule": "projected", "lambda_init": 0.0}, None),
    ],
)
def test_a_rule_takes_only_its_own_keys(keys, finding):
    if finding is None:
        assert Multipliers(**keys).rule == keys["rule"]
    else:
        with pytest.raises(ValueError, match=finding):
            Multipliers(**keys)
