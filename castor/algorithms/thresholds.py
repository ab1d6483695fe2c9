"""From a moderation model's probabilities to decisions: thresholds and temperatures chosen on validation rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Objective = Literal["f1", "balanced_accuracy"]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

MIN_POSITIVES = 3  # a label with fewer validation rows than this keeps the threshold 0.5
HIGHEST_TEMPERATURE = 20.0


@dataclass(frozen=True)
class Thresholds:
    """What a probability must exceed (strictly). The first two are of K labels each; `mean` is of their mean.

    `severity` (of P(severity > 0)) and `expected_severity` are None for a model without a severity head.
    """

    labels: tuple[float, ...]
    max: float
    mean: float
    severity: float | None = None
    expected_severity: float | None = None

    @classmethod
    def unfitted(cls, labels: int, severity: bool) -> Thresholds:
        """0.5 for every probability; `mean` and `expected_severity` as if one label, one level alone were at 0.5."""
        return cls((0.5,) * labels, 0.5, 0.5 / labels, *((0.5, 0.5) if severity else (None, None)))


@dataclass(frozen=True)
class Decision:
    """The verdict on n rows. A row is in a category, and of a severity above 0, if and only if it is unsafe."""

    unsafe: Flags  # [n]
    labels: Flags  # [n, K]
    severity: NDArray[np.int64] | None  # [n] 0 to 3; None without a severity head


def decide(probabilities: Floats, cumulative: Floats | None, thresholds: Thresholds) -> Decision:
    """Apply the thresholds.

    Unsafe: any label fires, that is, the largest probability exceeds `thresholds.max`; with a severity head,
    P(severity > 0) exceeds `thresholds.severity` instead. The categories of an unsafe row are the labels above their
    own thresholds, or else the one nearest to it; its severity is 1 + how many of P(severity > 1) and P(severity > 2)
    exceed one half.

    Args:
        probabilities: [n, K] of the labels.
        cumulative: [n, 3] P(severity > k), or None.
        thresholds: to apply.

    """
    margins = probabilities - np.array(thresholds.labels)
    if cumulative is None:
        unsafe = probabilities.max(1) > thresholds.max
    else:
        assert thresholds.severity is not None
        unsafe = cumulative[:, 0] > thresholds.severity
    fired = margins > 0
    nearest = np.arange(margins.shape[1]) == margins.argmax(1)[:, None]
    fired |= nearest & ~fired.any(1, keepdims=True)
    severity = None if cumulative is None else np.where(unsafe, 1 + (cumulative[:, 1:] > 0.5).sum(1), 0)
    return Decision(unsafe, fired & unsafe[:, None], severity)


def fit_thresholds(
    probabilities: Floats, cumulative: Floats | None, labels: Flags, labelled: Flags, unsafe: Flags,
    *, objective: Objective, floor: float,
) -> Thresholds:  # fmt: skip
    """Choose every threshold on validation rows.

    A label's threshold maximises its F1 over the rows of known categories, at or above `floor`; the four of the unsafe
    decision and of the classifier costs maximise `objective` against the unsafe flag.

    Args:
        probabilities: [n, K].
        cumulative: [n, 3] P(severity > k), or None.
        labels: [n, K].
        labelled: [n] the categories of the row are known.
        unsafe: [n].
        objective: see above.
        floor: see above.

    """
    chosen = tuple(
        best_threshold(p, y, "f1", floor, 0.5) if y.sum() >= MIN_POSITIVES else 0.5
        for p, y in zip(probabilities[labelled].T, labels[labelled].T, strict=True)
    )
    start = Thresholds.unfitted(len(chosen), cumulative is not None)

    def best(scores: Floats, default: float) -> float:
        return best_threshold(scores, unsafe, objective, 0.0, default)

    maximum, mean = best(probabilities.max(1), start.max), best(probabilities.mean(1), start.mean)
    if cumulative is None:
        return Thresholds(chosen, maximum, mean)
    return Thresholds(chosen, maximum, mean, best(cumulative[:, 0], 0.5), best(cumulative.sum(1), 0.5))


def best_threshold(scores: Floats, truth: Flags, objective: Objective, floor: float, default: float) -> float:
    """The threshold t >= floor for which `scores > t` serves `objective` best; of equally good ones, nearest `default`.

    Candidates are the middles between neighbouring scores, one that calls as much as it may positive, one that calls
    nothing so, and `default`. Scores and truth [n]. `default` is also the answer where the truth is all true or all
    false.
    """
    if truth.all() or not truth.any():
        return default
    order = np.argsort(scores)
    ranked, hits = scores[order], truth[order]
    lowest = max(floor, (floor + ranked[0]) / 2)
    candidates = np.unique([lowest, *((ranked[1:] + ranked[:-1]) / 2), ranked[-1], default])
    candidates = candidates[candidates >= floor]
    below = np.searchsorted(ranked, candidates, side="right")  # rows that are not called positive
    missed = np.concatenate([[0], np.cumsum(hits)])[below]
    positives, negatives = int(hits.sum()), int((~hits).sum())
    true_positives, called = positives - missed, len(ranked) - below
    if objective == "f1":
        value = 2 * true_positives / (positives + called)
    else:
        value = (true_positives / positives + 1 - (called - true_positives) / negatives) / 2
    best = candidates[value >= value.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - default))])


def fit_temperature(logits: Floats, truth: Flags) -> float:
    """The T that minimises the mean cross-entropy of σ(logits / T) against `truth`, arrays of one shape.

    At most HIGHEST_TEMPERATURE and at least its inverse.
    """

    def loss(log_temperature: float) -> float:
        scaled = logits * np.exp(-log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - truth * scaled))

    limit = float(np.log(HIGHEST_TEMPERATURE))
    return float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x))
