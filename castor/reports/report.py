"""report.html: one self-contained page with a run's verdict, its figures and sample responses."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from castor.evaluation.records import SEVERITIES, JudgedResponse
from castor.evaluation.summary import Step, Summary
from castor.io.files import write_text
from castor.reports import plots
from castor.reports.limits import told, tone_with_limits
from castor.reports.page import Figure, render
from castor.reports.plots import Look
from castor.reports.svg import POLICY_COLOURS
from castor.reports.wording import (
    Column,
    judge_columns,
    left_out,
    measured_columns,
    number,
    policy_title,
    shared_prompts,
    verdict,
)

SAMPLES_PER_KIND = 3
_KIND_TITLES = {
    "harmful": "Harmful prompts",
    "lookalike": "Harmless prompts that look harmful",
    "benign": "Benign prompts",
    None: "Prompts",
}


def write_report(
    path: str | Path,
    summary: Summary,
    responses: Mapping[str, Sequence[JudgedResponse]],
    title: str = "Castor: safe RLHF report",
) -> None:
    """Writes the report as one HTML file that loads nothing from elsewhere.

    `responses` holds the judged responses of every policy in `summary.policies`, those its metrics were taken from.
    Raises ValueError when a policy's responses are missing or not as many as its metrics say.
    """
    for name, metrics in summary.policies.items():
        found = len(responses.get(name, ()))
        if found != metrics.n:
            raise ValueError(f"the summary counts {metrics.n} responses of policy {name!r}, but {found} were given")
    rows = {name: responses[name] for name in summary.policies}
    looks = plots.policy_looks([*summary.policies, *(run for run in summary.runs if run not in summary.policies)])
    policies = list(summary.policies.values())
    columns, further = measured_columns(policies), judge_columns(policies)
    limits = told(summary)
    page = render(
        "report.html.j2",
        title=title,
        summary=summary,
        verdict=verdict(summary),
        limits=limits,
        alarms=[(policy_title(name), text) for name, run in summary.runs.items() for text in run.alarms.values()],
        leaks=[shared_prompts(shared) for shared in summary.leaks or ()],
        tone=tone_with_limits(verdict(summary).tone, limits),
        looks=looks,
        colours={name: f"var(--p{index % len(POLICY_COLOURS)})" for index, name in enumerate(looks)},
        columns=columns,
        left_out={name: left_out(counts) for name, counts in summary.rows.items()},
        further=further,
        tiles=[_tile(summary, column) for column in [*(each for each in columns if each.better), *further][:3]],
        histograms=_histograms(summary, rows, looks),
        plane=_plane(summary, rows, looks),
        constraints=_constraint_figures(summary, looks),
        progress=_progress_figures(summary, looks),
        harms=_harm_figures(summary, looks),
        samples=_samples(rows),
        models=[kind for kind in ("reward", "cost") if any(getattr(each, f"mean_{kind}") for each in policies)],
        has_gold=any(metrics.gold_harmful_rate is not None for metrics in policies),
        severities=SEVERITIES,
    )
    write_text(path, page)


def _tile(summary: Summary, column: Column) -> dict[str, Any]:
    """One figure of every policy as interval marks on a common axis that holds 0; places are percent of the axis."""
    estimates = {name: column.of(metrics) for name, metrics in summary.policies.items()}
    known = [estimate for estimate in estimates.values() if estimate is not None]
    low = min(0.0, *(estimate.low for estimate in known))
    high = max(1.0 if column.is_share else 0.0, *(estimate.high for estimate in known))
    scale = 100 / ((high - low) or 1.0)
    marks = {
        name: {
            "estimate": estimate,
            "at": (estimate.value - low) * scale,
            "start": (estimate.low - low) * scale,
            "width": (estimate.high - estimate.low) * scale,
        }
        for name, estimate in estimates.items()
        if estimate is not None
    }
    return {"column": column, "marks": marks, "zero": -low * scale}


def _histograms(
    summary: Summary, rows: Mapping[str, Sequence[JudgedResponse]], looks: Mapping[str, Look]
) -> list[Figure]:
    kept = [(constraint, constraint.bounded or constraint.asked) for constraint in summary.constraints]
    limits = {
        f"limit of the mean {number(each.limit)}": each.limit
        for constraint, each in kept
        if each.statistic == "mean" and constraint.judged_as == "cost"  # else it is on the cost of another judge
    }
    rewards = {
        name: np.array([row.reward for row in group])
        for name, group in rows.items()
        if summary.policies[name].mean_reward is not None
    }
    costs = {
        name: np.array([row.cost for row in group])
        for name, group in rows.items()
        if summary.policies[name].mean_cost is not None
    }
    first = next(iter(looks.values())).title
    histogram_note = (
        "Share of held-out responses at each score. The thick line is a policy's mean; "
        f"the thin grey outline repeats {first}, the starting point."
    )
    figures = []
    if rewards:
        note = f"{histogram_note} Further right is better."
        figures.append(Figure("Reward before and after", plots.score_histograms("reward", rewards, looks, {}), note))
    if costs:
        note = f"{histogram_note} Further left is better. Right of 0 the cost model calls a response unsafe"
        note += "; the limit is one of the mean, not of every response." if limits else "."
        lines = {"boundary 0": 0.0, **limits}
        figures.append(Figure("Cost before and after", plots.score_histograms("cost", costs, looks, lines), note))
    return figures


def _plane(summary: Summary, rows: Mapping[str, Sequence[JudgedResponse]], looks: Mapping[str, Look]) -> list[Figure]:
    """Nothing where no reward or no cost was measured."""
    if any(None in (metrics.mean_reward, metrics.mean_cost) for metrics in summary.policies.values()):
        return []
    note = (
        f"Each point is a response, at most {plots.PLANE_POINTS} a policy; large marks are means. "
        "A safer and more helpful policy moves down and to the right."
    )
    return [Figure("The reward-cost plane", plots.reward_cost_plane(rows, looks), note)]


def _constraint_figures(summary: Summary, looks: Mapping[str, Look]) -> list[Figure]:
    figures = []
    for name, statistic in plots.constraint_statistics(summary.runs):
        svg = plots.constraint_curves(name, statistic, summary.runs, looks)
        if svg is None:
            continue
        what = "the share of unsafe answers" if statistic == "share" else "mean cost"
        note = (
            f"λ should rise while {what} is above the limit (shaded) and fall once it is below. "
            "Thin lines are single steps, thick ones the mean of the last five."
        )
        if any(name in run.limits and run.limits[name].confidence for run in summary.runs.values()):
            note += " The dotted line is the upper confidence bound over the window, which is what must keep the limit."
        figures.append(Figure(f"Multiplier and {'share' if statistic == 'share' else 'cost'}: {name}", svg, note))
    return figures


def _progress_figures(summary: Summary, looks: Mapping[str, Look]) -> list[Figure]:
    """A curve for every objective and every signal that was only watched, and for the distance from the start."""
    wanted: list[tuple[str, str, Callable[[Step], float | None], str]] = []
    objectives = {name: weight for run in summary.runs.values() for name, weight in run.objectives.items()}
    for name, weight in objectives.items():
        note = "Mean score of each step's answers. A constrained run is expected to give up some of it for safety."
        if len(objectives) > 1:
            note += f" Its weight is {number(weight)}."
        wanted.append((f"Objective: {name}", "mean score", _score(name), note))
    if len(objectives) > 1:
        note = "What training raised: the sum of the objectives' mean scores, each times its weight."
        wanted.append(("All objectives", "weighted sum", lambda step: step.weighted_reward, note))
    for name in dict.fromkeys(name for run in summary.runs.values() for name in run.monitors):
        note = "A judge that takes no part in training. If it falls while the objectives rise, they are being gamed."
        wanted.append((f"Only watched: {name}", "mean score", _score(name), note))
    note = "How far the policy has moved. A steep climb late in a run is the mark of an over-optimised score model."
    wanted.append(("Distance from the starting point", "KL (nats per answer)", lambda step: step.kl, note))
    drawn = [
        (title, plots.training_curve(title, label, of, summary.runs, looks), note) for title, label, of, note in wanted
    ]
    return [Figure(title, svg, note) for title, svg, note in drawn if svg is not None]


def _score(signal: str) -> Callable[[Step], float | None]:
    return lambda step: step.metrics.get(f"{signal}/score_mean")


def _harm_figures(summary: Summary, looks: Mapping[str, Look]) -> list[Figure]:
    """Rates by category and severity: the gold judge's where every policy has them, else the cost model's."""
    policies = summary.policies
    judged = all(metrics.harmful_by_category is not None for metrics in policies.values())
    if judged:
        title, who = "Harmful answers", "Share of answers to harmful prompts that the gold judge calls harmful."
    else:
        title, who = (
            "Unsafe answers",
            "Share of answers with cost above 0, by the cost model: there is no gold judge here.",
        )
    prefix = "harmful" if judged else "unsafe"
    figures = []
    for by, by_severity in (("category", False), ("severity", True)):
        groups = {name: getattr(metrics, f"{prefix}_by_{by}") or {} for name, metrics in policies.items()}
        svg = plots.rates_by_group(f"{title} by {by}", groups, looks, by_severity)
        if svg is not None:
            note = f"{who} Short bars are better; lines are 95 % intervals, which say little where n is small."
            figures.append(Figure(f"{title} by {by}", svg, note))
    return figures


def _samples(rows: Mapping[str, Sequence[JudgedResponse]]) -> list[dict[str, Any]]:
    """For each kind of prompt the first few, in the order of their hash, that every policy answered.

    The hash makes the choice the same on every run and blind to what the responses say.
    """
    answers = [{row.prompt: row for row in reversed(group)} for group in rows.values()]
    shared = set.intersection(*(set(answer) for answer in answers))
    order = sorted(shared, key=lambda prompt: hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest())
    groups = []
    for kind, title in _KIND_TITLES.items():
        chosen = [prompt for prompt in order if answers[0][prompt].kind == kind][
            : SAMPLES_PER_KIND * (2 if kind is None else 1)
        ]
        cards = [
            {
                "first": answers[0][prompt],
                "answers": {name: answer[prompt] for name, answer in zip(rows, answers, strict=True)},
            }
            for prompt in chosen
        ]
        if cards:
            groups.append({"title": title, "cards": cards})
    return groups
