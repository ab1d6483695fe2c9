"""What a constraint measures: a statistic of the window's costs, its confidence bound, and the policy's cost stream.

A cost above 0 is an unsafe response; 0 itself is safe, and nothing here moves that boundary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from castor.config.multipliers import Constraint
from castor.statistics.wilson import wilson_interval

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Limit:
    """A constraint as numbers: `statistic`, or its upper `confidence` bound, must be at most `value`.

    `value` is in units of normalised cost for a mean (-d of the papers), a share in (0, 1) for a share.
    """

    value: float
    statistic: Literal["mean", "share"] = "mean"
    confidence: float | None = None

    @classmethod
    def of(cls, constraint: Constraint, value: float) -> Limit:
        """The limit `value` on what the config's section measures."""
        return cls(value, constraint.statistic, constraint.confidence)

    def measure(self, costs: Sequence[float]) -> float:
        """The statistic of `costs`, or its bound. Raises ValueError when there are too few to have one."""
        if self.statistic == "share":
            unsafe = sum(cost > 0 for cost in costs)
            return share(costs) if self.confidence is None else wilson_upper(unsafe, len(costs), self.confidence)
        return mean(costs) if self.confidence is None else normal_upper(costs, self.confidence)

    def violation(self, costs: Sequence[float]) -> float:
        """J_C = measure - value: positive while the constraint is violated."""
        return self.measure(costs) - self.value


def mean(costs: Sequence[float]) -> float:
    """Mean cost. Raises ValueError on no cost at all."""
    if not costs:
        raise ValueError("the cost window is empty: no episode cost has been seen yet")
    return math.fsum(costs) / len(costs)


def share(costs: Sequence[float]) -> float:
    """Share of unsafe responses, cost > 0."""
    return mean([float(cost > 0) for cost in costs])


def normal_upper(costs: Sequence[float], confidence: float) -> float:
    """One-sided upper bound of the mean: m + z s / sqrt(n), s the sample deviation, z the normal quantile."""
    count, center = len(costs), mean(costs)
    if count < 2:
        raise ValueError("a single cost has no confidence bound: raise prompts_per_step or episode_cost_window_size")
    variance = math.fsum((cost - center) ** 2 for cost in costs) / (count - 1)
    return center + NormalDist().inv_cdf(confidence) * math.sqrt(variance / count)


def wilson_upper(successes: int, count: int, confidence: float) -> float:
    """One-sided upper Wilson bound of a share (Wilson 1927): above 0 even when nothing was counted."""
    if count < 1:
        raise ValueError("the cost window is empty: no episode cost has been seen yet")
    return wilson_interval(successes, count, NormalDist().inv_cdf(confidence))[1]


def policy_costs(
    scores: Tensor, *, policy_cost: Literal["score", "indicator"], rectified_above: float | None
) -> Tensor:
    """[N] the costs the policy is trained on, from a constraint's scores [N].

    `rectified_above` d: {C - d}+ per response (RePO, arXiv 2410.19933, whose C - d is a cost with its boundary at 0).
    Otherwise the score itself, or the indicator 1{C > 0}.
    """
    if rectified_above is not None:
        return (scores - rectified_above).clamp(min=0.0)
    return (scores > 0).to(scores.dtype) if policy_cost == "indicator" else scores
