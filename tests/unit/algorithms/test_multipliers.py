"""The multiplier rule against torch.optim.SGD on log λ (loss -(J_C - limit) · exp(log λ)), in float64."""

import math
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from castor.algorithms.constraints import Limit
from castor.algorithms.multipliers import initial_state, update
from castor.config.multipliers import Multipliers

costs_of_a_step = st.lists(st.floats(-8, 8), min_size=1, max_size=9)


class Reference:
    """Safe RLHF eq. 31 as gradient ascent by an optimiser, and a deque as the window."""

    def __init__(self, config, limit):
        self.config, self.limit = config, limit
        self.log_lambda = torch.tensor(math.log(config.lambda_init), dtype=torch.float64, requires_grad=True)
        self.optimizer = torch.optim.SGD([self.log_lambda], lr=config.lambda_lr)
        self.window = deque(maxlen=config.episode_cost_window_size)
        self.steps = 0

    def step(self, costs):
        self.window.extend(costs)
        self.steps += 1
        if self.steps > self.config.lambda_update_delay_steps:
            violation = sum(self.window) / len(self.window) - self.limit
            self.optimizer.zero_grad()
            (-violation * self.log_lambda.exp()).backward()
            self.optimizer.step()
            if self.config.lambda_max is not None:
                with torch.no_grad():
                    self.log_lambda.clamp_(max=math.log(self.config.lambda_max))
        return self.log_lambda.exp().item()


@given(
    st.lists(costs_of_a_step, min_size=1, max_size=12),
    st.floats(-3, 1),
    st.floats(0.1, 2.0),
    st.floats(0.01, 0.2),
    st.floats(2.0, 5.0),
    st.integers(0, 3),
    st.integers(1, 16),
)
def test_every_step_equals_sgd_on_log_lambda(steps, limit, init, lr, maximum, delay, window):
    config = Multipliers(
        lambda_init=init, lambda_lr=lr, lambda_max=maximum, lambda_update_delay_steps=delay,
        episode_cost_window_size=window,
    )  # fmt: skip
    reference, state = Reference(config, limit), initial_state(config)
    assert state.value == pytest.approx(init, rel=1e-15)
    for costs in steps:
        expected = reference.step(costs)
        state = update(state, costs, Limit(limit), config)
        assert state.value == pytest.approx(expected, rel=1e-12, abs=1e-300)
        assert state.window == tuple(reference.window)
        assert state.mean_cost == pytest.approx(sum(reference.window) / len(reference.window), abs=1e-12)


def test_a_worked_step():
    # window mean 1.5, limit -0.5, λ = 2, lr 0.1: log λ grows by 0.1 · 2 · 2 = 0.4
    config = Multipliers(lambda_init=2.0, lambda_lr=0.1, episode_cost_window_size=2)
    state = update(initial_state(config), [100.0, 1.0, 2.0], Limit(-0.5), config)
    assert state.window == (1.0, 2.0)
    assert math.log(state.value) == pytest.approx(math.log(2.0) + 0.4, abs=1e-15)
    assert state.updates == 1


@given(st.floats(-3, 3), st.floats(0.01, 3))
def test_it_rises_while_the_mean_cost_exceeds_the_limit_and_falls_below(limit, distance):
    config = Multipliers()
    start = initial_state(config)
    assert update(start, [limit + distance], Limit(limit), config).value > start.value
    assert update(start, [limit - distance], Limit(limit), config).value < start.value
    assert update(start, [0.0], Limit(0.0), config).value == start.value


def test_the_limit_is_minus_d():
    """With d = 0.5 a mean cost of -0.2 still violates J_C = E[C] + d <= 0."""
    config = Multipliers()
    assert update(initial_state(config), [-0.2], Limit(-0.5), config).value > 1.0
    assert update(initial_state(config), [-0.2], Limit(0.0), config).value < 1.0


def test_the_maximum_holds_and_can_be_left_again():
    config = Multipliers(lambda_init=1.0, lambda_lr=1.0, lambda_max=5.0, episode_cost_window_size=1)
    state = initial_state(config)
    for _ in range(5):
        state = update(state, [50.0], Limit(0.0), config)
    assert state.value == pytest.approx(5.0)
    assert update(state, [-0.1], Limit(0.0), config).value < 4.0


def test_delayed_updates_only_fill_the_window():
    config = Multipliers(lambda_update_delay_steps=2, episode_cost_window_size=3)
    state = initial_state(config)
    for number in range(2):
        state = update(state, [1.0, 3.0], Limit(0.0), config)
        assert (state.value, state.updates) == (1.0, number + 1)
    state = update(state, [], Limit(0.0), config)
    assert state.window == (3.0, 1.0, 3.0)
    assert math.log(state.value) == pytest.approx(0.1 * 7 / 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 4e38, -1e300])  # scores are float32
def test_a_cost_that_is_not_finite_stops_the_step(bad):
    config = Multipliers()
    with pytest.raises(ValueError, match="not finite"):
        update(initial_state(config), [0.0, bad], Limit(0.0), config)


def test_an_empty_window_has_no_mean():
    with pytest.raises(ValueError, match="empty"):
        _ = initial_state(Multipliers()).mean_cost
    with pytest.raises(ValueError, match="empty"):
        update(initial_state(Multipliers()), [], Limit(0.0), Multipliers())
