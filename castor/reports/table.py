"""The closing tables in the terminal."""

from rich.table import Table
from rich.text import Text

from castor.evaluation.assessment import Assessment
from castor.evaluation.summary import Summary
from castor.reports.wording import interval, judge_columns, measured_columns, number, policy_title
from castor.statistics.bootstrap import Estimate


def closing_table(summary: Summary) -> Table:
    """One row a figure and one column a policy, each value with its 95 % interval; fits 80 columns with three policies.

    The best value of a row is bold where its figure has a better direction and the values differ.
    """
    table = Table(title="Held-out prompts, 95 % intervals", title_justify="left", header_style="bold")
    table.add_column("", overflow="fold")
    for name, metrics in summary.policies.items():
        table.add_column(f"{policy_title(name)}  n={metrics.n}", justify="right", overflow="fold")
    policies = summary.policies.values()
    for column in [*measured_columns(policies), *judge_columns(policies)]:
        estimates = [column.of(metrics) for metrics in summary.policies.values()]
        values = [estimate.value for estimate in estimates if estimate is not None]
        best = {"low": min, "high": max}.get(column.better)
        winner = best(values) if best and len(set(values)) > 1 else None
        title = Text(column.title)
        title.append(f"\n{column.note}", style="dim")
        table.add_row(title, *(_cell(estimate, column.is_share, winner) for estimate in estimates))
    return table


TERMINAL_FIGURES = (
    "reward_accuracy", "cost_ranking_accuracy", "cost_sign_accuracy", "accuracy", "f1", "auroc", "false_positive_rate",
    "exact_match", "macro_f1", "severity_accuracy",
)  # fmt: skip


def assessment_table(assessment: Assessment) -> Table:
    """The main figures of every model on every data set, with their intervals; one row a figure."""
    table = Table(title="95 % intervals over prompts", title_justify="left", header_style="bold")
    for title in ("model", "figure"):
        table.add_column(title, overflow="fold")
    for data in assessment.data.values():
        table.add_column(data.source, justify="right", overflow="fold")
    for name, model in assessment.models.items():
        for figure in TERMINAL_FIGURES:
            found = [model.sets[set_name].overall.get(figure) for set_name in assessment.data]
            if any(estimate is not None for estimate in found):
                table.add_row(name, figure, *(_cell(estimate, True, None) for estimate in found))
    return table


def baseline_tables(assessment: Assessment) -> list[Table]:
    """The figures of the models and of every baseline side by side, one table a data set; values only."""
    tables = []
    for set_name, data in assessment.data.items():
        lines = [(name, model.sets[set_name].overall) for name, model in assessment.models.items()]
        lines += [(each.name, each.sets[set_name].overall) for each in assessment.baselines if set_name in each.sets]
        models = len(assessment.models)
        figures = [figure for figure in TERMINAL_FIGURES if any(found.get(figure) for _, found in lines[:models])]
        table = Table(
            title=f"Models and trivial baselines on {data.source} ({data.fitted})",
            title_justify="left", header_style="bold", box=None,
        )  # fmt: skip
        table.add_column("", overflow="fold")
        for figure in figures:
            table.add_column(figure.replace("_", " "), justify="right", overflow="fold")
        for index, (name, found) in enumerate(lines):
            values = [found.get(figure) for figure in figures]
            cells = ["" if value is None else number(value.value, True) for value in values]
            table.add_row(name, *cells, style="" if index < models else "dim")
        tables.append(table)
    return tables


def _cell(estimate: Estimate | None, is_share: bool, winner: float | None) -> Text:
    if estimate is None:
        return Text("not judged", style="dim")
    cell = Text(number(estimate.value, is_share), style="bold" if estimate.value == winner else "")
    cell.append(f"\n{interval(estimate, is_share)}", style="not bold dim")
    return cell
