"""Rules on λ itself: projected ascent, its rectified variant, and prices that never move."""

from __future__ import annotations

from castor.algorithms.multipliers.rule import Measured, Memory, Rule, clip
from castor.config.multipliers import Multipliers


class Projected(Rule):
    """λ ← clip(λ + lr · violation, lambda_min, lambda_max): dual ascent, with a floor it can leave at once."""

    def start(self, config: Multipliers) -> Memory:
        return {"lambda": config.lambda_init}

    def step(self, memory: Memory, measured: Measured, config: Multipliers) -> Memory:
        return {"lambda": clip(memory["lambda"] + config.lambda_lr * measured.violation, config)}


class Rectified(Projected):
    """RePO (Peng et al., arXiv 2410.19933): min over π, max over λ ≥ 0 of -E[R] + λ E[{C - d}+].

    Safe responses do not make up for unsafe ones: the policy's cost is {C - d}+ per response
    (constraints.policy_costs), and λ ← min(λ + lr · mean {C - d}+, lambda_max). As the mean is never negative, λ never
    falls.
    """

    def step(self, memory: Memory, measured: Measured, config: Multipliers) -> Memory:
        return {"lambda": clip(memory["lambda"] + config.lambda_lr * measured.rectified, config)}


class Fixed(Rule):
    """Reward shaping: λ stays at lambda_init."""

    def start(self, config: Multipliers) -> Memory:
        return {"lambda": config.lambda_init}

    def step(self, memory: Memory, measured: Measured, config: Multipliers) -> Memory:
        return memory


class Unpriced(Fixed):
    """λ = 0: a constraint that is only watched (none), or that has cost steps of its own instead of a λ (crpo)."""

    def start(self, config: Multipliers) -> Memory:
        return {"lambda": 0.0}
