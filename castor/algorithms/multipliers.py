"""The price of a constraint: log-space gradient ascent on λ, with a window over the last costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from castor.config.rlhf import Multipliers


@dataclass(frozen=True)
class MultiplierState:
    """λ of one constraint and what its next update needs. Plain values: it is persisted as JSON."""

    log_lambda: float
    window: tuple[float, ...] = field(default=())  # the last raw episode costs, before KL and clamp, oldest first
    updates: int = 0

    @property
    def value(self) -> float:
        """λ ≥ 0."""
        return math.exp(self.log_lambda)

    @property
    def mean_cost(self) -> float:
        """Mean of the window. Raises ValueError while it is empty."""
        if not self.window:
            raise ValueError("the cost window is empty: no episode cost has been seen yet")
        return math.fsum(self.window) / len(self.window)


def initial_state(config: Multipliers) -> MultiplierState:
    """λ = lambda_init and an empty window."""
    return MultiplierState(math.log(config.lambda_init))


def update(state: MultiplierState, costs: Sequence[float], threshold: float, config: Multipliers) -> MultiplierState:
    """One update before the policy's: log λ += lr · λ · (mean cost - threshold), then λ ≤ lambda_max.

    This is SGD on -(J_C - threshold) · exp(log λ) (Safe RLHF eq. 31; threshold = -d). The first
    `lambda_update_delay_steps` calls only fill the window. Raises ValueError on a cost that is not finite.
    """
    if not all(math.isfinite(cost) for cost in costs):
        raise ValueError("an episode cost is not finite: λ is not updated on it")
    window = (state.window + tuple(float(cost) for cost in costs))[-config.episode_cost_window_size :]
    state = replace(state, window=window, updates=state.updates + 1)
    if state.updates <= config.lambda_update_delay_steps:
        return state
    log_lambda = state.log_lambda + config.lambda_lr * state.value * (state.mean_cost - threshold)
    if config.lambda_max is not None:
        log_lambda = min(log_lambda, math.log(config.lambda_max))
    return replace(state, log_lambda=log_lambda)
