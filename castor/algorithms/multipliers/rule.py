"""What every multiplier rule is: a start, a step, and the price that follows from its memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from castor.config.multipliers import Multipliers

Memory = Mapping[str, float]  # what a rule carries from step to step: plain values, so that JSON holds it


@dataclass(frozen=True)
class Seen:
    """The newest state of a constraint. `rectified` is the window's mean of {C - limit}+."""

    violation: float  # statistic - limit
    rectified: float


class Rule(ABC):
    """A multiplier rule. It has no state of its own: memory in, memory out."""

    @abstractmethod
    def start(self, config: Multipliers) -> Memory:
        """Memory before the first update."""

    @abstractmethod
    def step(self, memory: Memory, seen: Seen, config: Multipliers) -> Memory:
        """Memory after one update on the newest `seen`."""

    def price(self, memory: Memory) -> float:
        """λ ≥ 0."""
        return memory["lambda"]


def clip(value: float, config: Multipliers) -> float:
    """λ cut to the config's [lambda_min, lambda_max]."""
    value = max(value, config.lambda_min)
    return value if config.lambda_max is None else min(value, config.lambda_max)
