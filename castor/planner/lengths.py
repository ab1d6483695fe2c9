"""How long responses are: a log-normal distribution, cut at the longest that may be sampled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Lengths:
    """Of responses in tokens: `mean` after the cut at `cap`, `spread` the standard deviation of the logarithm.

    `spread` 0: all alike. Its default is the one at which a published step comes out (docs/scale.md).
    """

    mean: float
    cap: int
    spread: float = 0.6

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """[count] int64 lengths, at least 1."""
        if self.mean >= self.cap:
            return np.full(count, self.cap, dtype=np.int64)
        drawn = np.exp(self._location + self.spread * rng.standard_normal(count))
        return np.clip(np.rint(drawn), 1, self.cap).astype(np.int64)

    @cached_property
    def _location(self) -> float:
        """The mean of the logarithm before the cut, such that the mean after it is `mean`; found by bisection."""
        low, high = 0.0, math.log(self.cap) + 5 * self.spread + 5
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._mean_at(middle) < self.mean else (low, middle)
        return low

    def _mean_at(self, location: float) -> float:
        """E[min(X, cap)] of a log-normal X."""
        if self.spread == 0:
            return min(math.exp(location), self.cap)
        z = (math.log(self.cap) - location) / self.spread
        below = math.exp(location + self.spread**2 / 2) * _normal(z - self.spread)
        return below + self.cap * (1 - _normal(z))


def _normal(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
