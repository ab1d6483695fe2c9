"""The page that compares methods: one table of figures, one of constraints, and λ over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes

from benchmarks.comparison import Comparison, MethodFigures
from castor.evaluation.summary import Summary
from castor.io.files import write_text
from castor.reports.page import Figure, render
from castor.reports.svg import ALARM, INK, MARKERS, POLICY_COLOURS, draw, place_legend
from castor.reports.wording import interval, number, policy_title
from castor.statistics.bootstrap import Estimate

Cell = tuple[str, str]  # what a cell says, and what stands small below it
COLUMNS = ("method", "harmful answers", "helpfulness", "refusals of harmless", "s per step")
COMPARISON_COLUMNS = ("method", "harmful answers", "helpfulness", "time of a step")
CONSTRAINT_COLUMNS = ("method", "constraint", "λ", "violation at the end", "time in violation", "regret", "oscillation")
TEMPLATES = Path(__file__).parent / "templates"
NO_FIGURE = "\N{EN DASH}"


def write_methods_page(
    path: Path,
    methods: Sequence[MethodFigures],
    summaries: Mapping[str, Sequence[Summary]],
    note: str,
    groups: Mapping[str, Mapping[str, Estimate]],
    limits: Mapping[str, float],
    comparisons: Sequence[Comparison],
) -> None:
    """Write the comparison as one HTML file that loads nothing from elsewhere.

    Args:
        path: the file.
        methods: in the order of the table.
        summaries: of the seeds of each method that was trained, for the curves.
        note: one sentence on how the runs were made.
        groups: of each method, the share of responses that are harmful in each group of categories.
        limits: of each group, the limit that a method with several constraints was given.
        comparisons: of methods with one of them over the same seeds; may be empty.

    """
    write_text(
        path,
        render(
            "comparison.html.j2",
            TEMPLATES,
            title="Castor: methods at equal steps",
            note=note,
            columns=COLUMNS,
            rows=[_row(method) for method in methods],
            reference=policy_title(comparisons[0].reference) if comparisons else "",
            comparison_columns=COMPARISON_COLUMNS,
            comparison_rows=[[(policy_title(found.name), ""), *comparison_cells(found)] for found in comparisons],
            constraint_columns=CONSTRAINT_COLUMNS,
            constraint_rows=[row for method in methods for row in _constraint_rows(method)],
            group_columns=group_columns(limits),
            group_rows=[[(policy_title(name), ""), *group_cells(found)] for name, found in groups.items()],
            figures=_figures(methods, summaries),
        ),
    )


def cells(method: MethodFigures) -> list[Cell]:
    """The figures of one method, as they are shown in text and on the page."""
    seconds = NO_FIGURE if method.seconds_per_step is None else number(method.seconds_per_step)
    return [
        _cell(method.harmful, is_share=True),
        _cell(method.helpfulness),
        _cell(method.refusals, is_share=True),
        (seconds, ""),
    ]


def comparison_cells(found: Comparison) -> list[Cell]:
    """How one method differs from the reference: percentage points, helpfulness, times as long."""
    seconds = found.seconds_per_step
    return [
        _signed(found.harmful, 1, 100.0, "\N{NO-BREAK SPACE}points"),
        _signed(found.helpfulness, 3),
        (NO_FIGURE, "") if seconds is None else (f"× {number(seconds.value)}", interval(seconds)),
    ]


def constraint_cells(method: MethodFigures) -> dict[str, list[Cell]]:
    """The figures of each constraint of one method."""
    return {
        name: [
            (f"{found.lowest:.2f} to {found.highest:.2f}", ""),
            (f"{found.violation:+.3f}", ""),
            (number(found.time_in_violation, True), ""),
            (number(found.regret), ""),
            (f"{found.oscillation:.3f}", ""),
        ]
        for name, found in method.constraints.items()
    }


def group_columns(limits: Mapping[str, float]) -> tuple[str, ...]:
    """The heads of the table of groups."""
    return ("method", *(f"harmful in {name} (limit {number(limit, True)})" for name, limit in limits.items()))


def group_cells(groups: Mapping[str, Estimate]) -> list[Cell]:
    """The shares of one method, in the order of the groups."""
    return [_cell(estimate, is_share=True) for estimate in groups.values()]


def _row(method: MethodFigures) -> list[Cell]:
    return [(policy_title(method.name), f"{method.seeds} seed{'s' if method.seeds > 1 else ''}"), *cells(method)]


def _constraint_rows(method: MethodFigures) -> list[list[Cell]]:
    title = policy_title(method.name)
    return [[(title, ""), (name, ""), *row] for name, row in constraint_cells(method).items()]


def _cell(estimate: Estimate | None, is_share: bool = False) -> Cell:
    if estimate is None:
        return NO_FIGURE, ""
    return number(estimate.value, is_share), interval(estimate, is_share)


def _signed(estimate: Estimate, digits: int, scale: float = 1.0, unit: str = "") -> Cell:
    value, low, high = (
        f"{scale * end:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
        for end in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value}{unit}", f"{low} to {high}"


def _figures(methods: Sequence[MethodFigures], summaries: Mapping[str, Sequence[Summary]]) -> list[Figure]:
    plane = Figure(
        "Helpful and harmless",
        _plane(methods),
        "Up is more helpful, left is less harmful, by the gold judge; bars are 95 % intervals.",
    )
    curves = [
        Figure(
            f"λ of {policy_title(name)}",
            _prices(name, found),
            "One line a seed and constraint: what a unit of cost is worth in reward, over the steps.",
        )
        for name, found in summaries.items()
        if any(summary.runs[name].steps[0].multipliers for summary in found)
    ]
    return [plane, *curves]


def _plane(methods: Sequence[MethodFigures]) -> Markup:
    def paint(axes: Axes) -> None:
        for number_, method in enumerate(methods):
            x, y = method.harmful, method.helpfulness
            if x is None or y is None:
                continue
            axes.errorbar(
                100 * x.value,
                y.value,
                xerr=[[100 * (x.value - x.low)], [100 * (x.high - x.value)]],
                yerr=[[y.value - y.low], [y.high - y.value]],
                fmt=MARKERS[number_ // len(POLICY_COLOURS) % len(MARKERS)],
                color=POLICY_COLOURS[number_ % len(POLICY_COLOURS)],
                linewidth=0.8,
                label=policy_title(method.name),
            )
        axes.set_xlabel("harmful answers to harmful prompts, %")
        axes.set_ylabel("helpfulness")
        place_legend(axes, columns=3)

    return draw("Helpfulness and harm of the methods", 5.0, paint)


def _prices(name: str, summaries: Sequence[Summary]) -> Markup:
    def paint(axes: Axes) -> None:
        for seed, summary in enumerate(summaries):
            steps = summary.runs[name].steps
            for place, constraint in enumerate(steps[0].multipliers):
                axes.plot(
                    [step.step for step in steps],
                    [step.multipliers[constraint] for step in steps],
                    color=(INK, ALARM, *POLICY_COLOURS[2:])[place % len(POLICY_COLOURS)],
                    alpha=0.8,
                    label=constraint if seed == 0 else None,
                )
        axes.set_xlabel("step")
        axes.set_ylabel("λ")
        place_legend(axes)

    return draw(f"lambda of {name}", 2.4, paint)
