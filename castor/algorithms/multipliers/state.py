"""The multiplier of one constraint between steps: its rule's memory, the cost window, and what has happened so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from castor.algorithms.constraints import Limit, mean, share
from castor.algorithms.multipliers.linear import Fixed, Projected, Rectified, Unpriced
from castor.algorithms.multipliers.log_space import AdamLog, SGDLog
from castor.algorithms.multipliers.pid import PID
from castor.algorithms.multipliers.rule import Measured, Memory, Rule
from castor.config.multipliers import Multipliers

RULES: dict[str, Rule] = {
    "sgd_log": SGDLog(),
    "adam_log": AdamLog(),
    "projected": Projected(),
    "pid": PID(),
    "fixed": Fixed(),
    "none": Unpriced(),
    "rectified": Rectified(),
    "crpo": Unpriced(),  # its turns are decided over all constraints: `alternating.violated`
}


LARGEST_COST = float(np.finfo(np.float32).max)  # scores are float32; the arithmetic here is float64 and cannot overflow


@dataclass(frozen=True)
class MultiplierState:
    """λ of one constraint and what its next update needs. Plain values: it is persisted as JSON."""

    rule: str
    memory: Memory
    window: tuple[float, ...] = field(default=())  # the last raw episode costs, before KL and clamp, oldest first
    updates: int = 0
    violation: float | None = None  # statistic - limit after the newest costs
    violated_updates: int = 0
    regret: float = 0.0

    @property
    def value(self) -> float:
        """λ ≥ 0."""
        return RULES[self.rule].price(self.memory)

    @property
    def mean_cost(self) -> float:
        """Mean of the window. Raises ValueError while it is empty."""
        return mean(self.window)

    def telemetry(self) -> dict[str, float]:
        """lambda, window_mean and window_unsafe_share, violation, time_in_violation (share of steps), regret.

        `regret` is the sum over steps of max(0, violation), in the limit's unit. Raises ValueError before an update.
        """
        if self.violation is None:
            raise ValueError("a multiplier that has seen no cost has no telemetry")
        return {
            "lambda": self.value,
            "window_mean": self.mean_cost,
            "window_unsafe_share": share(self.window),
            "violation": self.violation,
            "time_in_violation": self.violated_updates / self.updates,
            "regret": self.regret,
        }

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "window": list(self.window), "memory": dict(self.memory)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MultiplierState:
        """What `to_json` returned."""
        return cls(**{**values, "window": tuple(values["window"])})


def initial_state(config: Multipliers) -> MultiplierState:
    """λ before the first update, and an empty window."""
    return MultiplierState(config.rule, RULES[config.rule].start(config))


def update(state: MultiplierState, costs: Sequence[float], limit: Limit, config: Multipliers) -> MultiplierState:
    """One update before the policy's, on the raw episode costs of its batch.

    The first `lambda_update_delay_steps` calls only fill the window. Raises ValueError on a cost that is no finite
    float32 number.
    """
    if not all(abs(cost) <= LARGEST_COST for cost in costs):
        raise ValueError("an episode cost is not finite: λ is not updated on it")
    window = (state.window + tuple(float(cost) for cost in costs))[-config.episode_cost_window_size :]
    violation = limit.violation(window)
    state = replace(
        state,
        window=window,
        updates=state.updates + 1,
        violation=violation,
        violated_updates=state.violated_updates + (violation > 0),
        regret=state.regret + max(0.0, violation),
    )
    if state.updates <= config.lambda_update_delay_steps:
        return state
    rectified = mean([max(0.0, cost - limit.value) for cost in window])
    return replace(state, memory=RULES[state.rule].step(state.memory, Measured(violation, rectified), config))
