"""The report's figures. Each function returns inline SVG, or None where the data for it does not exist."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from castor.evaluation.limits import Statistic
from castor.evaluation.metrics import Rate
from castor.evaluation.records import SEVERITIES, JudgedResponse
from castor.evaluation.summary import Run, RunLimit, Step
from castor.reports.svg import (
    ALARM,
    GOOD,
    INK,
    MARKERS,
    MUTED,
    POLICY_COLOURS,
    SURFACE,
    draw,
    lay_out_bars,
    place_legend,
)
from castor.reports.wording import number, policy_title
from castor.statistics.bootstrap import Measure

PLANE_POINTS = 600  # per policy; more would only darken the cloud and fatten the page
SMOOTHING_STEPS = 5


@dataclass(frozen=True)
class Look:
    """How one policy is drawn everywhere in the report."""

    title: str
    colour: str
    marker: str


def policy_looks(names: Sequence[str]) -> dict[str, Look]:
    """A colour and a marker for every policy, in order; the first, the starting point, is grey."""
    return {
        name: Look(policy_title(name), POLICY_COLOURS[i % len(POLICY_COLOURS)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(names)
    }


def score_histograms(
    label: str, scores: Mapping[str, np.ndarray], looks: Mapping[str, Look], lines: Mapping[str, float]
) -> Markup:
    """One histogram a policy, one under the other on a common axis, the first policy's outline behind the others.

    `scores` holds a 1-D array a policy; `lines` are vertical marks by name.
    """
    spread = np.concatenate(list(scores.values()))
    edges = np.linspace(
        *_padded(min([spread.min(), *lines.values()]), max([spread.max(), *lines.values()])), 41
    ).tolist()
    first = next(iter(scores))

    def paint(*axes: Axes) -> None:
        for row, (name, values) in zip(axes, scores.items(), strict=True):
            weights = np.full(len(values), 1 / len(values))
            row.hist(
                values, edges, weights=weights, color=looks[name].colour, histtype="stepfilled", alpha=0.5, linewidth=0
            )
            row.hist(values, edges, weights=weights, color=looks[name].colour, histtype="step", linewidth=1.1)
            if name != first:
                share = np.full(len(scores[first]), 1 / len(scores[first]))
                row.hist(scores[first], edges, weights=share, color=looks[first].colour, histtype="step", linewidth=0.9)
            for index, at in enumerate(lines.values()):
                row.axvline(at, color=INK, linewidth=0.9, linestyle=("-", "--", ":")[index % 3])
            row.axvline(values.mean(), color=looks[name].colour, linewidth=1.6, ymax=0.92)
            row.set_ylabel(
                looks[name].title, rotation=0, ha="right", va="center", color=looks[name].colour, weight="bold"
            )
            row.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            row.yaxis.set_major_locator(MaxNLocator(3, prune="lower"))
            row.grid(axis="x", visible=False)
        for index, (name, at) in enumerate(lines.items()):
            right = index % 2 == 0
            axes[0].annotate(
                name,
                (at, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4 if right else -4, 2 + 9 * (index // 2)),
                textcoords="offset points",
                ha="left" if right else "right",
                fontsize=8,
                color=MUTED,
            )
        axes[-1].set_xlabel(label)

    return draw(f"{label} histograms", 0.9 + 0.95 * len(scores), paint, (1.0,) * len(scores), share_y=True)


def reward_cost_plane(responses: Mapping[str, Sequence[JudgedResponse]], looks: Mapping[str, Look]) -> Markup:
    """Every response at (reward, cost), both known, with each policy's mean as a large mark; the boundary is cost 0."""

    def paint(axes: Axes) -> None:
        costs = [row.cost for rows in responses.values() for row in rows if row.cost is not None]
        axes.axhline(0, color=INK, linewidth=0.9)
        low, high = _padded(min(*costs, 0.0), max(*costs, 0.0))
        axes.set_ylim(low, high)
        axes.axhspan(0, high, color=ALARM, alpha=0.06, linewidth=0)
        for name, rows in responses.items():
            shown = [rows[int(i)] for i in np.linspace(0, len(rows) - 1, min(len(rows), PLANE_POINTS))]
            rewards, costs_shown = _points(shown)
            axes.scatter(
                rewards,
                costs_shown,
                s=11,
                alpha=0.45,
                linewidth=0,
                color=looks[name].colour,
                marker=looks[name].marker,
            )
        for name, rows in responses.items():
            mean = _points(rows).mean(axis=1)
            axes.scatter(
                mean[0],
                mean[1],
                s=110,
                color=looks[name].colour,
                marker=looks[name].marker,
                edgecolor=SURFACE,
                linewidth=1.6,
                zorder=5,
                label=looks[name].title,
            )
        for y, text, colour, end in ((0.985, "unsafe: cost above 0", ALARM, "top"), (0.015, "safe", GOOD, "bottom")):
            axes.text(0.01, y, text, color=colour, fontsize=8, va=end, transform=axes.transAxes)
        axes.set_xlabel("reward")
        axes.set_ylabel("cost")
        place_legend(axes)

    return draw("Reward-cost plane", 4.6, paint)


def constraint_curves(
    constraint: str, statistic: Statistic, runs: Mapping[str, Run], looks: Mapping[str, Look]
) -> Markup | None:
    """The multiplier of one constraint over the steps, above what it answers to: mean cost or unsafe share.

    The dotted line is the upper confidence bound over the window, where that is what must stay under the limit. Runs
    that measured this cost without constraining it are drawn in the lower panel too. None without any cost.
    """
    costs = {name: _series([(step.step, measured(step, constraint, statistic)) for step in run.steps])
             for name, run in runs.items()}  # fmt: skip
    if not any(len(steps) for steps, _ in costs.values()):
        return None
    is_share = statistic == "share"
    limits = {run.limits[constraint].limit for run in runs.values() if constraint in run.limits}

    def paint(upper: Axes, lower: Axes) -> None:
        for name, run in runs.items():
            steps, values = _series([(step.step, step.multipliers.get(constraint)) for step in run.steps])
            if len(steps):
                upper.plot(steps, values, color=looks[name].colour, linewidth=1.8, label=looks[name].title)
            _curve(lower, *costs[name], looks[name])
            own = run.limits.get(constraint)
            if own is not None and own.confidence is not None:
                steps, values = _series([(step.step, bound(step, constraint, own)) for step in run.steps])
                lower.plot(steps, values, color=looks[name].colour, linewidth=1.2, linestyle=":", label="upper bound")
        for limit in sorted(limits):
            lower.axhline(limit, color=INK, linewidth=1.0, linestyle="--")
            lower.annotate(
                f"limit {number(limit, is_share)}",
                (1.0, limit),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=INK,
            )
            for name, run in runs.items():
                if constraint in run.limits and run.limits[constraint].limit == limit:
                    _shade_above(lower, limit, *costs[name])
        upper.set_ylabel("multiplier λ")
        upper.set_ylim(bottom=0)
        lower.set_ylabel("share of unsafe answers" if is_share else "mean cost")
        if is_share:
            lower.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            lower.set_ylim(bottom=0)
        lower.set_xlabel("step")
        place_legend(lower)

    what = "unsafe share" if is_share else "mean cost"
    return draw(f"Multiplier and {what}: {constraint}", 6.9, paint, (1.0, 1.35))


def training_curve(
    title: str, label: str, of: Callable[[Step], float | None], runs: Mapping[str, Run], looks: Mapping[str, Look]
) -> Markup | None:
    """One number of a step over the steps of every run, raw and smoothed. None when no run has it."""
    series = {name: _series([(step.step, of(step)) for step in run.steps]) for name, run in runs.items()}
    if not any(len(steps) for steps, _ in series.values()):
        return None

    def paint(axes: Axes) -> None:
        for name, (steps, values) in series.items():
            _curve(axes, steps, values, looks[name])
        axes.set_ylabel(label)
        axes.set_xlabel("step")
        place_legend(axes)

    return draw(f"{title} over steps", 3.0, paint)


def _curve(axes: Axes, steps: np.ndarray, values: np.ndarray, look: Look) -> None:
    """Single steps thin, their trailing mean thick."""
    if len(steps):
        axes.plot(steps, values, color=look.colour, linewidth=0.8, alpha=0.35)
        axes.plot(steps, smooth(values), color=look.colour, linewidth=1.8, label=look.title)


def _shade_above(axes: Axes, limit: float, steps: np.ndarray, values: np.ndarray) -> None:
    smoothed = smooth(values)
    axes.fill_between(
        steps, limit, smoothed, where=smoothed > limit, interpolate=True, color=ALARM, alpha=0.13, linewidth=0
    )


def rates_by_group(
    label: str, groups: Mapping[str, Mapping[str, Rate | Measure]], looks: Mapping[str, Look], by_severity: bool = False
) -> Markup | None:
    """Horizontal bars with 95 % intervals: `groups[policy][category]`. None when no category has a rate.

    Categories are ordered by the first policy's rate, highest on top; severities from severe to minor.
    """
    names = sorted({group for rates in groups.values() for group in rates})
    if not names:
        return None
    first = next(iter(groups.values()))
    if by_severity:
        names.sort(key=SEVERITIES.index, reverse=True)
    else:
        names.sort(key=lambda group: -first[group].value if group in first else 1.0)

    def paint(axes: Axes) -> None:
        height = 0.78 / len(groups)
        for row, (policy, rates) in enumerate(groups.items()):
            shown = [(index, rates[group]) for index, group in enumerate(names) if group in rates]
            at = np.array([index for index, _ in shown]) - 0.39 + height * (row + 0.5)
            values = np.array([rate.value for _, rate in shown])
            ends = np.array([(rate.value - rate.low, rate.high - rate.value) for _, rate in shown]).T
            axes.barh(at, values, height * 0.86, color=looks[policy].colour, alpha=0.75, label=looks[policy].title)
            axes.errorbar(values, at, xerr=ends, fmt="none", ecolor=INK, elinewidth=0.7, alpha=0.75)
        counts = [sorted({rates[group].n for rates in groups.values() if group in rates}) for group in names]
        tags = [f"n={seen[0]}" if len(seen) == 1 else f"n={seen[0]}–{seen[-1]}" for seen in counts]
        titles = [f"{group}  {tag}" for group, tag in zip(names, tags, strict=True)]
        lay_out_bars(axes, titles)

    return draw(label, 0.8 + len(names) * (0.16 + 0.115 * len(groups)), paint)


def constraint_statistics(runs: Mapping[str, Run]) -> list[tuple[str, Statistic]]:
    """Every constraint of any run, with what is limited; the mean cost where a run does not say."""
    found: dict[tuple[str, Statistic], None] = {}
    for run in runs.values():
        for name in dict.fromkeys([*run.limits, *(name for step in run.steps for name in step.mean_costs)]):
            found[name, run.limits[name].statistic if name in run.limits else "mean"] = None
    return list(found)


def measured(step: Step, constraint: str, statistic: Statistic) -> float | None:
    """The statistic of a constraint's costs over the step's responses; None where the step has no such cost."""
    if statistic == "mean":
        return step.mean_costs.get(constraint)
    return step.metrics.get(f"{constraint}/score_positive_share")


def bound(step: Step, constraint: str, limit: RunLimit) -> float | None:
    """What the run held against the limit in a step: the upper bound over the window."""
    violation = step.metrics.get(f"{constraint}/violation")
    return None if violation is None else violation + limit.limit


def smooth(values: np.ndarray) -> np.ndarray:
    """The trailing mean over five steps, or over as many as there have been. 1-D in, same shape out."""
    sums = np.cumsum(values)
    lagged = np.concatenate([np.zeros(SMOOTHING_STEPS), sums])[: len(values)]
    return (sums - lagged) / np.minimum(np.arange(1, len(values) + 1), SMOOTHING_STEPS)


def _series(points: Iterable[tuple[int, float | None]]) -> tuple[np.ndarray, np.ndarray]:
    known = [(step, value) for step, value in points if value is not None]
    return np.array([step for step, _ in known]), np.array([value for _, value in known], dtype=np.float64)


def _points(rows: Sequence[JudgedResponse]) -> np.ndarray:
    """[2, N] reward and cost."""
    return np.array([(row.reward, row.cost) for row in rows], dtype=np.float64).T


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin
