"""Rules on λ itself: projected ascent, its rectified variant, and prices that never move."""

from __future__ import annotations

from castor.algorithms.multipliers.rule import Memory, Rule, Seen, clip
from castor.config.multipliers import Multipliers


class Projected(Rule):
    """λ ← clip(λ + lr · violation, lambda_min, lambda_max): dual ascent, with a floor it can leave at once."""

    def start(self, config: Multipliers) -> Memory:
        return {"lambda": config.lambda_init}

    def step(self, memory: Memory, seen: Seen, config: Multipliers) -> Memory:
        return {"lambda": clip(memory["lambda"] + config.lambda_lr * seen.violation, config)}


class Rectified(Projected):
    """RePO (Peng et al., arXiv 2410.19933): min over π, max over λ ≥ 0 of -E[R] + λ E[{C - d}+].

    No safe response pays for an unsafe one: the policy's cost is {C - d}+ per response (constraints.policy_costs) and
    λ ← min(λ + lr · mean {C - d}+, lambda_max). As the mean is never negative, λ never falls.
    """

    def step(self, memory: Memory, seen: Seen, config: Multipliers) -> Memory:
        return {"lambda": clip(memory["lambda"] + config.lambda_lr * seen.rectified, config)}


class Fixed(Rule):
    """Reward shaping: λ = lambda_init for good."""

    def start(self, config: Multipliers) -> Memory:
        return {"lambda": config.lambda_init}

    def step(self, memory: Memory, seen: Seen, config: Multipliers) -> Memory:
        return memory


class Unpriced(Fixed):
    """λ = 0: a constraint that is only watched (none), or one whose turn decides and not its price (crpo)."""

    def start(self, config: Multipliers) -> Memory:
        return {"lambda": 0.0}
