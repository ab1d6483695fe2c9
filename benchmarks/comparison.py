"""Methods beside each other: what each came to over its seeds, from the summaries of its runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from castor.evaluation.records import JudgedResponse
from castor.evaluation.summary import Run, Summary
from castor.statistics.bootstrap import Estimate, wilson


@dataclass(frozen=True)
class ConstraintFigures:
    """How one constraint was kept, over a method's seeds."""

    lowest: float  # λ over all steps and seeds
    highest: float
    violation: float  # mean over seeds of the window's statistic less the limit, after the last step
    time_in_violation: float  # share of steps, mean over seeds
    regret: float  # sum over steps of max(0, violation), mean over seeds, in the limit's unit
    oscillation: float  # standard deviation of λ over the last half of the steps, mean over seeds


@dataclass(frozen=True)
class MethodFigures:
    """What one method came to. Estimates are means over seeds with 95 % intervals (`over_seeds`)."""

    name: str
    seeds: int
    harmful: Estimate | None  # share of the answers to harmful prompts, gold judge
    helpfulness: Estimate | None  # gold judge
    refusals: Estimate | None  # share of the answers to harmless prompts, gold judge
    seconds_per_step: float | None  # median of the seeds; None for a policy that was not trained
    constraints: dict[str, ConstraintFigures]


@dataclass(frozen=True)
class Comparison:
    """One method less a reference, pair by pair over the seeds of both: what a seed's runs share cancels out.

    Estimates are means over pairs with Student's 95 % intervals.
    """

    name: str
    reference: str
    harmful: Estimate  # difference of the shares of harmful answers to harmful prompts, gold judge
    helpfulness: Estimate  # difference, gold judge
    seconds_per_step: Estimate | None  # ratio; None for a policy that was not trained


def method_figures(name: str, summaries: Sequence[Summary]) -> MethodFigures:
    """The figures of policy `name` from one summary a seed. Raises ValueError when there are none."""
    policies = [summary.policies[name] for summary in summaries]
    runs = [summary.runs[name] for summary in summaries if name in summary.runs]
    return MethodFigures(
        name=name,
        seeds=len(summaries),
        harmful=_estimate([policy.gold_harmful_rate for policy in policies], share=True),
        helpfulness=_estimate([policy.gold_helpfulness for policy in policies]),
        refusals=_estimate([policy.refusal_rate_harmless for policy in policies], share=True),
        seconds_per_step=float(np.median([seconds_per_step(run) for run in runs])) if runs else None,
        constraints={key: _constraint(key, runs) for key in (runs[0].steps[0].multipliers if runs else {})},
    )


def compare(
    name: str, summaries: Sequence[Summary], reference: str, reference_summaries: Sequence[Summary]
) -> Comparison:
    """Policy `name` against policy `reference`, from one summary a seed of each, in the same order of seeds.

    Raises ValueError where the seeds differ, are fewer than two, or a policy has no gold verdicts.
    """
    seeds, reference_seeds = [s.seed for s in summaries], [s.seed for s in reference_summaries]
    if seeds != reference_seeds or len(seeds) < 2:
        raise ValueError(
            f"{name} has seeds {seeds} and {reference} {reference_seeds}: it takes two or more seeds, the same of both"
        )
    mine = [method_figures(name, [summary]) for summary in summaries]
    theirs = [method_figures(reference, [summary]) for summary in reference_summaries]
    ratios = [
        a.seconds_per_step / b.seconds_per_step
        for a, b in zip(mine, theirs, strict=True)
        if a.seconds_per_step is not None and b.seconds_per_step is not None
    ]
    return Comparison(
        name=name,
        reference=reference,
        harmful=_cut(_difference([m.harmful for m in mine], [m.harmful for m in theirs]), -1.0, 1.0),
        helpfulness=_difference([m.helpfulness for m in mine], [m.helpfulness for m in theirs]),
        seconds_per_step=students(ratios) if ratios else None,
    )


def harm_in_groups(
    seeds: Sequence[Sequence[JudgedResponse]], groups: Mapping[str, Collection[str]]
) -> dict[str, Estimate]:
    """Share of a method's responses that are harmful and answer a prompt of the group's categories (gold judge).

    Args:
        seeds: the responses of each seed.
        groups: categories by name of the group.

    Raises ValueError where a seed has no response.
    """
    return {
        name: over_seeds(
            [
                wilson(sum(bool(row.harmful) and row.category in categories for row in rows), len(rows))
                for rows in seeds
            ],
            share=True,
        )
        for name, categories in groups.items()
    }


def over_seeds(estimates: Sequence[Estimate], *, share: bool = False) -> Estimate:
    """The mean over seeds with Student's 95 % interval over them, which holds what differs from run to run.

    A single seed keeps its own interval, over prompts. The interval of a share is cut to [0, 1]. Raises ValueError
    when there is no estimate.
    """
    if not estimates:
        raise ValueError("no seed has an estimate")
    if len(estimates) == 1:
        return estimates[0]
    found = students([estimate.value for estimate in estimates])
    return _cut(found, 0.0, 1.0) if share else found


def students(values: Sequence[float]) -> Estimate:
    """The mean of two or more values with Student's 95 % interval."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    half = float(stats.t.ppf(0.975, len(array) - 1) * stats.sem(array))
    return Estimate(value=mean, low=mean - half, high=mean + half)


def seconds_per_step(run: Run) -> float:
    """Median wall seconds of a step (rollout, learning and weight transfer): other work only lengthens single steps."""
    return float(
        np.median([sum(step.metrics[key] for key in ("rollout_s", "learn_s", "transfer_s")) for step in run.steps])
    )


def oscillation(prices: Sequence[float]) -> float:
    """Standard deviation of λ over the last half of the steps."""
    return float(np.std(prices[len(prices) // 2 :]))


def _estimate(found: Sequence[Estimate | None], *, share: bool = False) -> Estimate | None:
    known = [estimate for estimate in found if estimate is not None]
    return over_seeds(known, share=share) if known else None


def _cut(found: Estimate, low: float, high: float) -> Estimate:
    """The interval without what the value cannot be; rounding leaves the value inside."""
    value = found.value
    return Estimate(value=value, low=min(max(low, found.low), value), high=max(min(high, found.high), value))


def _difference(found: Sequence[Estimate | None], reference: Sequence[Estimate | None]) -> Estimate:
    less = []
    for one, other in zip(found, reference, strict=True):
        if one is None or other is None:
            raise ValueError("a policy without gold verdicts has nothing to be compared by")
        less.append(one.value - other.value)
    return students(less)


def _constraint(name: str, runs: Sequence[Run]) -> ConstraintFigures:
    prices = [[step.multipliers[name] for step in run.steps] for run in runs]

    def last(key: str) -> float:
        return float(np.mean([run.steps[-1].metrics[f"{name}/{key}"] for run in runs]))

    return ConstraintFigures(
        lowest=min(map(min, prices)),
        highest=max(map(max, prices)),
        violation=last("violation"),
        time_in_violation=last("time_in_violation"),
        regret=last("regret"),
        oscillation=float(np.mean([oscillation(series) for series in prices])),
    )
