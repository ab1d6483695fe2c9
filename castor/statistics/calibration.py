"""How far a probability can be believed: expected calibration error, Brier score, reliability curve.

Bins have equal width: bin i of B holds the probabilities in [i/B, (i+1)/B), the last one also 1.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from castor.statistics.bootstrap import Measure, Statistic, measure
from castor.statistics.classification import mean, share

BINS = 15  # as in Guo et al. 2017, On calibration of modern neural networks


class Bin(BaseModel):
    """One point of the reliability curve."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float = Field(description="Lower end of the bin.")
    high: float = Field(description="Upper end of the bin.")
    n: int = Field(ge=1, description="Rows whose probability lies in the bin.")
    confidence: float = Field(description="Their mean probability of being unsafe.")
    observed: Measure | None = Field(description="Share of them that is unsafe; null when one prompt holds them all.")


def expected_calibration_error(probability: ArrayLike, actual: ArrayLike, bins: int = BINS) -> Statistic:
    """Sum over bins of (rows in bin / rows) |mean probability - share of positives| (Guo et al. 2017, eq. 3).

    Chance alone makes it positive, more so with few rows a bin: its interval leans upwards.
    """
    chance, outcome = _checked(probability, actual)
    inside = np.eye(bins)[_bin(chance, bins)]  # [rows, bins] one-hot
    terms = np.concatenate([inside * (chance - outcome)[:, None], np.ones((len(chance), 1))], axis=1)
    return Statistic(
        terms, lambda sums: np.abs(sums[..., :-1]).sum(axis=-1) / sums[..., -1], np.ones(len(chance), dtype=bool)
    )


def brier_score(probability: ArrayLike, actual: ArrayLike) -> Statistic:
    """Mean of (probability - outcome)² (Brier 1950): 0 is perfect, 0.25 is what always saying 0.5 gets."""
    chance, outcome = _checked(probability, actual)
    return mean((chance - outcome) ** 2)


def reliability(
    probability: ArrayLike, actual: ArrayLike, prompts: NDArray[np.integer], bins: int = BINS, seed: int = 0
) -> list[Bin]:
    """The reliability curve: for every bin that holds rows, its mean probability and its share of positives."""
    chance, outcome = _checked(probability, actual)
    where = _bin(chance, bins)
    held = {str(i): where == i for i in np.unique(where)}
    observed = measure({"unsafe": share(outcome > 0)}, prompts, held, seed)
    return [
        Bin(
            low=int(i) / bins,
            high=(int(i) + 1) / bins,
            n=int(inside.sum()),
            confidence=float(chance[inside].mean()),
            observed=observed[i]["unsafe"],
        )
        for i, inside in held.items()
    ]


def _bin(chance: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    return np.minimum((chance * bins).astype(np.int64), bins - 1)


def _checked(probability: ArrayLike, actual: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    chance, outcome = np.asarray(probability, dtype=np.float64), np.asarray(actual, dtype=bool).astype(np.float64)
    if not ((chance >= 0) & (chance <= 1)).all():  # also refuses NaN
        raise ValueError("a probability lies outside 0 to 1, or is not a number")
    return chance, outcome
