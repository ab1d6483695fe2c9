"""Numbers with their 95 % intervals: Wilson's for shares of independent trials, the bootstrap for everything else.

Rows of one prompt resemble each other, so the figures of a model resample prompts, not rows (the cluster bootstrap,
Davison and Hinkley 1997, section 3.8): intervals over rows would be too narrow.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from castor.statistics.wilson import wilson_interval

Z_95 = 1.959963984540054  # the standard normal's 97.5 % quantile
RESAMPLES = 2000
CELLS_AT_ONCE = 4_000_000  # bounds the bootstrap's memory at about 64 MB however many responses there are


class Estimate(BaseModel):
    """A number and its 95 % confidence interval."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    value: float = Field(description="The estimate itself.")
    low: float = Field(description="Lower end of the 95 % interval.")
    high: float = Field(description="Upper end of the 95 % interval.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"the interval {self.low} to {self.high} does not hold the value {self.value}")
        return self


class Measure(Estimate):
    """A figure, its interval over prompts, and what it was taken over."""

    n: int = Field(ge=1, description="Rows (or pairs, or responses) the figure was taken over.")
    prompts: int = Field(ge=2, description="Different prompts among them; the interval resamples these.")


@dataclass(frozen=True)
class Statistic:
    """A figure that depends on the rows only through sums over them: shares, F1, kappa, calibration error.

    Then one matrix product resamples any number of figures, for all rows and for any group of them.
    """

    terms: NDArray[np.float64]  # [rows, k] what is summed
    of: Callable[[NDArray[np.float64]], NDArray[np.float64]]  # sums [..., k] -> figure [...]; NaN: it does not exist
    counted: NDArray[np.bool_]  # [rows] the rows the figure is taken over
    is_share: bool = False  # of trials that hit or miss; terms are (hits, trials)


def wilson(successes: float, n: int) -> Estimate:
    """The share successes/n with its 95 % Wilson score interval (Wilson 1927).

    Raises ValueError when n < 1 or successes is not in 0..n.
    """
    if n < 1:
        raise ValueError("a share of no responses at all has no value")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes among {n} responses")
    share, (low, high) = successes / n, wilson_interval(successes, n, Z_95)
    # min and max: at shares of 0 and 1 rounding would leave the ends a hair inside the value.
    return Estimate(value=share, low=max(0.0, min(low, share)), high=min(1.0, max(high, share)))


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, name: str = "values", seed: int = 0) -> Estimate:
    """The mean of `values` (1-D) with its 95 % percentile-bootstrap interval over 2000 seeded resamples.

    Raises ValueError, naming `name`, when there are fewer than two values (no interval exists) or one is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < 2:
        raise ValueError(
            f"{name}: an interval for the mean needs at least 2 values, got an array of shape {array.shape}"
        )
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name}: value {index} is {array[index]}, not a finite number")
    means = np.concatenate([array[drawn].mean(axis=1) for drawn in _resamples(array.size, seed)])
    value = float(array.mean())
    return Estimate(value=value, **_ends(means, value))


def measure(
    statistics: Mapping[str, Statistic],
    prompts: NDArray[np.integer],
    groups: Mapping[str, NDArray[np.bool_]] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Measure | None]]:
    """Every statistic within every group of rows, as [group][statistic], with 95 % percentile intervals over prompts.

    Args:
        statistics: over the same rows.
        prompts: [rows] an integer for each row's prompt; rows of one prompt are drawn together.
        groups: [rows] masks by name; without groups, all rows as the group "".
        seed: of the 2000 resamples, which all figures share.

    A figure is None where it does not exist (the F1 of no positives, the kappa of one class) or its rows are of fewer
    than two prompts. Resamples in which it does not exist are left out. A share of exactly 0 or 1 never varies over
    resamples; it gets Wilson's interval with the prompts as trials. Raises ValueError for terms that are not finite.
    """
    _, cluster = np.unique(prompts, return_inverse=True)
    count = int(cluster.max()) + 1 if len(cluster) else 0
    groups = {"": np.ones(len(cluster), dtype=bool)} if groups is None else groups
    keys = [(group, name) for group in groups for name in statistics]
    if count < 2 or not keys:
        return {group: dict.fromkeys(statistics) for group in groups}
    sums = [_cluster_sums(statistics[name], groups[group], cluster, count, name) for group, name in keys]
    widths = np.cumsum([part.shape[1] for part in sums])[:-1]
    drawn_sums = resampled_sums(np.concatenate(sums, axis=1), seed)
    result: dict[str, dict[str, Measure | None]] = {group: {} for group in groups}
    for (group, name), part, drawn in zip(keys, sums, np.split(drawn_sums, widths, axis=1), strict=True):
        statistic, inside = statistics[name], groups[group] & statistics[name].counted
        size, apart = int(inside.sum()), len(np.unique(cluster[inside]))
        result[group][name] = _measure(statistic, part.sum(axis=0), drawn, size, apart)
    return result


def _measure(
    statistic: Statistic, total: NDArray[np.float64], drawn: NDArray[np.float64], n: int, prompts: int
) -> Measure | None:
    """One figure from its sums [k] and their resamples [RESAMPLES, k]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value, values = float(statistic.of(total)), statistic.of(drawn)
    return figure_of_sums(value, values, statistic.is_share, n, prompts)


def figure_of_sums(value: float, values: NDArray[np.float64], is_share: bool, n: int, prompts: int) -> Measure | None:
    """A figure with the interval that its resamples [RESAMPLES] give; None as in `measure`."""
    values = values[np.isfinite(values)]
    if prompts < 2 or not math.isfinite(value) or not len(values):
        return None
    if is_share and value in (0.0, 1.0):
        wide = wilson(value * prompts, prompts)
        return Measure(value=value, low=wide.low, high=wide.high, n=n, prompts=prompts)
    return Measure(value=value, **_ends(values, value), n=n, prompts=prompts)


def _cluster_sums(
    statistic: Statistic, group: NDArray[np.bool_], cluster: NDArray[np.integer], count: int, name: str
) -> NDArray[np.float64]:
    """[clusters, k] sums of the terms of the rows in `group`."""
    if not np.isfinite(statistic.terms).all():
        row = int(np.flatnonzero(~np.isfinite(statistic.terms).all(axis=1))[0])
        raise ValueError(f"{name}: row {row} has a value that is not a finite number")
    terms = np.where((group & statistic.counted)[:, None], statistic.terms, 0.0)
    return np.stack([np.bincount(cluster, column, count) for column in terms.T], axis=1)


def resampled_sums(sums: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """[RESAMPLES, k] sums over clusters drawn with replacement, of sums [clusters, k]."""
    count = len(sums)
    pieces = []
    for drawn in _resamples(count, seed):
        offset = np.arange(len(drawn))[:, None] * count
        times = np.bincount((drawn + offset).ravel(), minlength=len(drawn) * count).reshape(len(drawn), count)
        pieces.append(times.astype(np.float64) @ sums)
    return np.concatenate(pieces)


def _resamples(count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """RESAMPLES rows of `count` indices drawn with replacement, in pieces that fit in memory."""
    rng = np.random.default_rng(seed)
    per_piece = max(1, CELLS_AT_ONCE // count)
    for start in range(0, RESAMPLES, per_piece):
        yield rng.integers(count, size=(min(per_piece, RESAMPLES - start), count))


def _ends(values: NDArray[np.float64], value: float) -> dict[str, float]:
    low, high = (float(end) for end in np.quantile(values, (0.025, 0.975)))
    # Equal values: the resampled figures may differ from the figure in the last bit.
    return {"low": min(low, value), "high": max(high, value)}
