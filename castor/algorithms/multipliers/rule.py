"""The interface of a multiplier rule: a start, a step, and the λ that follows from its memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from castor.config.multipliers import Multipliers

Memory = Mapping[str, float]  # what a rule carries from step to step: plain values, so that JSON holds it


@dataclass(frozen=True)
class Measured:
    """What a step follows from: the window's costs against the limit."""

    violation: float  # statistic - limit
    rectified: float  # mean of {C - limit}+


class Rule(ABC):
    """A multiplier rule. It has no state of its own: memory in, memory out."""

    @abstractmethod
    def start(self, config: Multipliers) -> Memory:
        """Memory before the first update."""

    @abstractmethod
    def step(self, memory: Memory, measured: Measured, config: Multipliers) -> Memory:
        """Memory after one update."""

    def price(self, memory: Memory) -> float:
        """λ ≥ 0."""
        return memory["lambda"]


def clip(value: float, config: Multipliers) -> float:
    """λ cut to the config's [lambda_min, lambda_max]."""
    return min(max(value, config.lambda_min), config.highest)
