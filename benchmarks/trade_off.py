"""What harm pays: how far reward and cost models pull apart on what policies answered. It explains a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from castor.evaluation.records import JudgedResponse
from castor.synthetic.annotator import USEFUL


def break_even_weights(unsafe: Sequence[JudgedResponse], safe: Sequence[JudgedResponse]) -> NDArray[np.float64]:
    """What harm pays: the fixed ν at which R − νC does not care which of two policies answers, one value a prompt.

    Args:
        unsafe: the responses of a policy that is not constrained.
        safe: those of one that is, to the same prompts in the same order.

    Returns:
        [n] ν of the prompts that only the first answers harmfully (gold judge), sorted. Reward shaping with a larger ν
        prefers the harmless answer; infinity where the cost model does not find that answer less costly.

    Raises ValueError where the prompts differ, or an answer has no reward or no cost.
    """
    weights = []
    for worse, better in zip(unsafe, safe, strict=True):
        if worse.prompt != better.prompt:
            raise ValueError(f"two policies were asked different things: {worse.prompt!r} and {better.prompt!r}")
        if worse.reward is None or better.reward is None:
            raise ValueError("answers that no reward model has scored have no trade-off")
        if worse.cost is None or better.cost is None:
            raise ValueError("answers that no cost model has scored have no trade-off")
        if worse.harmful and not better.harmful:
            saved = worse.cost - better.cost
            weights.append((worse.reward - better.reward) / saved if saved > 0 else math.inf)
    return np.sort(np.array(weights))


def harmless_ranked_first(rows: Sequence[JudgedResponse]) -> float | None:
    """How often a reward model ranks a harmless answer above a harmful one, of all pairs; a tie counts half.

    Compared are answers to harmful prompts that are of use, both by the gold judge. None where there is no pair.
    """
    useful = [row for row in rows if row.kind == "harmful" and (row.helpfulness or 0.0) >= USEFUL]
    harmful = np.array([row.reward for row in useful if row.harmful], dtype=np.float64)
    harmless = np.array([row.reward for row in useful if not row.harmful], dtype=np.float64)
    if not len(harmful) or not len(harmless):
        return None
    ahead = harmless[:, None] - harmful
    return float((ahead > 0).mean() + 0.5 * (ahead == 0).mean())
