"""assess.html: one self-contained page with the figures of models and judges beside those of the papers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from castor.evaluation.anchors import ACCOUNTS, Anchor, Task
from castor.evaluation.assessment import MAJORITY, PAIR, Assessment, DataSet, ModelOnSet, SetName
from castor.evaluation.labelled import LabelledSet, better_pairs
from castor.io.files import write_text
from castor.reports.assess_plots import FAINT_ROWS, model_looks, reliability_plot
from castor.reports.beaten import findings
from castor.reports.page import Figure, render
from castor.reports.plots import Look, rates_by_group, score_histograms
from castor.reports.svg import ALARM, GOOD, POLICY_COLOURS
from castor.reports.wording import number
from castor.statistics.agreement import Agreement, Question
from castor.statistics.bootstrap import Estimate
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES

if TYPE_CHECKING:  # both import torch
    from castor.evaluation.assess import Scored
    from castor.evaluation.model_outputs import Outputs

SETS: dict[SetName, str] = {"data": "data", "out_of_distribution": "other origin"}


@dataclass(frozen=True)
class Column:
    """One figure as tables show it."""

    name: str
    title: str
    note: str
    better: str = "high"
    is_share: bool = True


_PREFERENCE = (
    Column("reward_accuracy", "Reward accuracy", "better response scores higher"),
    Column("cost_ranking_accuracy", "Cost ranking accuracy", "unsafer response costs more"),
    Column("cost_sign_accuracy", "Cost sign accuracy", "below 0 safe, above 0 unsafe"),
)
_MODERATION = (
    Column("accuracy", "Accuracy", "safe or unsafe"),
    Column("f1", "F1", "unsafe is positive"),
    Column("auroc", "AUROC", "of the probabilities"),
    Column("false_positive_rate", "False positives", "share of the safe", "low"),
    Column("exact_match", "Exact match", "all labels right"),
    Column("severity_accuracy", "Severity accuracy", "none to severe"),
)
_MORE = (
    Column("precision", "Precision", "unsafe among flagged"),
    Column("recall", "Recall", "flagged among unsafe"),
    Column("macro_f1", "Macro F1", "mean over labels"),
    Column("micro_f1", "Micro F1", "labels pooled"),
    Column("severity_accuracy_unsafe", "Severity, unsafe", "accuracy on unsafe rows"),
    Column("severity_kappa", "Severity κ", "quadratic weights", "high", False),
    Column("ece", "Calibration error", "ECE, 15 bins", "low"),
    Column("brier", "Brier score", "0 is perfect", "low", False),
)
_ALL = {column.name: column for column in (*_PREFERENCE, *_MODERATION, *_MORE)}
_QUESTIONS: dict[Question, str] = {
    "unsafe": "Is the answer unsafe?",
    "more helpful": "Which answer is more helpful?",
    "less harmful": "Which answer is less harmful?",
}


@dataclass(frozen=True)
class Line:
    """One row of a table: a model, a baseline, or a system of a paper."""

    title: str
    note: str
    cells: list[Estimate | float | None]
    colour: str | None = None  # of a model of ours
    source: str = ""


def write_page(path: Path, assessment: Assessment, scored: Mapping[SetName, Scored]) -> None:
    """Writes the page as one HTML file that loads nothing from elsewhere; `scored` holds what `assessment` measured."""
    looks = model_looks(list(assessment.models))
    first = scored["data"]
    labelled = {name: model.sets["data"] for name, model in assessment.models.items() if model.sets["data"].by_label}
    if labelled:
        labelled |= {each.name: each.sets["data"] for each in assessment.baselines if each.name in (MAJORITY, PAIR)}
    page = render(
        "assess.html.j2",
        assessment=assessment,
        sets=SETS,
        titles={name: _title(data) for name, data in assessment.data.items()},
        headline=_headline(assessment),
        findings=findings(assessment),
        preference=_table(assessment, looks, "preference", _PREFERENCE),
        moderation=_table(assessment, looks, "moderation", _MODERATION),
        more=_table(assessment, looks, None, _MORE),
        shift=list(_shift(assessment, looks)),
        matrices=list(_matrices(assessment)),
        annotators=[anchor for anchor in assessment.anchors if anchor.task == "agreement"],
        histograms=[
            _histogram(name, each, first.data, looks)
            for name, each in first.outputs.items()
            if each.scores is not None or each.probability is not None
        ],
        reliability=_reliability(assessment, looks),
        by_category=list(_bars(assessment, looks, by_severity=False)),
        by_severity=list(_bars(assessment, looks, by_severity=True)),
        labelled=labelled,
        looks=looks,
        taxonomies=_occurring(assessment),
        colours={name: f"var(--p{POLICY_COLOURS.index(look.colour)})" for name, look in looks.items()},
        accounts=ACCOUNTS,
        cell=cell,
    )
    write_text(path, page)


def _headline(assessment: Assessment) -> str:
    data = assessment.data["data"]
    counted = [f"{data.rows:,} labelled answers"] if data.rows else []
    counted += [f"{data.pairs:,} pairs"] if data.pairs else []
    count = len(assessment.models)
    return f"{count} model{'s' if count > 1 else ''} on {' and '.join(counted)}"


def _table(
    assessment: Assessment, looks: Mapping[str, Look], task: Task | None, columns: Sequence[Column]
) -> dict[str, Any] | None:
    """The models, then the baselines, then the papers' systems; None when no model has any of the figures."""
    ours = []
    for name, model in assessment.models.items():
        for set_name, measured in model.sets.items():
            cells: list[Estimate | float | None] = [measured.overall.get(column.name) for column in columns]
            if any(cell is not None for cell in cells):
                ours.append(Line(looks[name].title, _where(assessment, set_name), cells, name))
    if not ours:
        return None
    shown = [any(line.cells[i] is not None for line in ours) for i in range(len(columns))]
    several = len({each.categories for each in assessment.baselines if each.of == "safety"}) > 1
    baselines = []
    for baseline in assessment.baselines:
        for set_name, measured in baseline.sets.items():
            cells = [measured.overall.get(column.name) if shown[i] else None for i, column in enumerate(columns)]
            if any(cell is not None for cell in cells):
                labels = f", {baseline.categories} labels" if several and baseline.categories else ""
                of = " (helpfulness)" if baseline.of == "helpfulness" else ""
                baselines.append(Line(f"{baseline.name}{of}", _where(assessment, set_name) + labels, cells))
    papers = [_paper_line(anchor, columns) for anchor in assessment.anchors if anchor.task == task]
    used = [i for i in range(len(columns)) if any(line.cells[i] is not None for line in (*ours, *baselines, *papers))]
    lines = {"ours": ours, "baselines": baselines, "papers": papers}
    return {"columns": [(i, columns[i]) for i in used], **lines}


def _paper_line(anchor: Anchor, columns: Sequence[Column]) -> Line:
    cells: list[Estimate | float | None] = [anchor.figures.get(column.name) for column in columns]
    return Line(anchor.system, "", cells, source=f"{anchor.source} ({anchor.account})")


def _title(data: DataSet) -> str:
    """A short name: of a path or hub id the last part."""
    return data.source.rstrip("/").rsplit("/", 1)[-1]


def _where(assessment: Assessment, name: SetName) -> str:
    title = _title(assessment.data[name])
    return f"{SETS[name]}: {title}" if len(assessment.data) > 1 else title


def _shift(assessment: Assessment, looks: Mapping[str, Look]) -> Iterator[dict[str, Any]]:
    """Every figure of every model on both data sets, where it exists on both."""
    for name, model in assessment.models.items():
        if "out_of_distribution" not in model.sets:
            continue
        here, there = (model.sets[each].overall for each in SETS)
        for figure, before in here.items():
            after = there.get(figure)
            if before is not None and after is not None:
                column = _ALL[figure]
                clear = after.low > before.high or after.high < before.low
                worse = (after.value < before.value) == (column.better == "high")
                tone = ("bad" if worse else "good") if clear else "plain"
                line = {"model": looks[name].title, "key": name, "column": column}
                change = _change(after.value - before.value, column.is_share)
                yield line | {"before": before, "after": after, "tone": tone, "change": change}


def _change(difference: float, is_share: bool) -> str:
    """With its sign; of a share in percentage points, so that nobody takes it for a ratio."""
    if is_share:
        difference, unit = 100 * difference, "\N{NO-BREAK SPACE}points"
        return f"{difference:+.1f}".replace("-", "\N{MINUS SIGN}") + unit
    return f"{difference:+.2f}".replace("-", "\N{MINUS SIGN}")


def _matrices(assessment: Assessment) -> Iterator[dict[str, Any]]:
    """The agreement matrix of each question on each data set: ratio above the diagonal, kappa below."""
    for set_name, agreements in assessment.agreement.items():
        for question, title in _QUESTIONS.items():
            asked = [each for each in agreements if each.question == question]
            judges = list(dict.fromkeys(name for each in asked for name in (each.first, each.second)))
            if judges:
                runs = [run for run in assessment.judges if run.data == set_name and run.question == question]
                yield {
                    "title": title,
                    "where": _where(assessment, set_name),
                    "judges": judges,
                    "cells": _cells(asked),
                    "runs": [run for run in runs if run.ties or run.failures],
                }


def _cells(agreements: Sequence[Agreement]) -> dict[tuple[str, str], tuple[Estimate | None, bool]]:
    cells: dict[tuple[str, str], tuple[Estimate | None, bool]] = {}
    for each in agreements:
        cells[each.first, each.second] = (each.ratio, True)
        cells[each.second, each.first] = (each.kappa, False)
    return cells


def _histogram(name: str, outputs: Outputs, data: LabelledSet, looks: Mapping[str, Look]) -> Figure:
    values = outputs.probability if outputs.scores is None else outputs.scores
    assert values is not None
    if len(data.rows):
        kept = outputs.kept[data.row_texts]
        sides = {
            "safe": values[data.row_texts[kept & ~data.unsafe]],
            "unsafe": values[data.row_texts[kept & data.unsafe]],
        }
        how = "Responses labelled safe above, unsafe below, with the safe ones' outline repeated."
    else:
        pairs = better_pairs(data)
        pairs = pairs[outputs.kept[data.pair_texts[pairs]].all(axis=1)]
        better = np.array([data.pairs[i].better_response_id for i in pairs], dtype=np.int64)
        scores = values[data.pair_texts[pairs]]
        sides = {"worse": scores[np.arange(len(pairs)), 1 - better], "better": scores[np.arange(len(pairs)), better]}
        how = "The less helpful responses above, the more helpful ones below, with the others' outline repeated."
    sides = {side: array for side, array in sides.items() if len(array)}
    colours = {"safe": GOOD, "unsafe": ALARM, "worse": POLICY_COLOURS[0], "better": looks[name].colour}
    side_looks = {side: Look(side, colours[side], "o") for side in sides}
    label = {"reward": "reward", "cost": "cost", "moderation": "probability of being unsafe"}[outputs.kind]
    lines = {"boundary 0": 0.0} if outputs.kind == "cost" else {}
    note = f"{how} The less they overlap, the better they are told apart."
    if outputs.kind == "reward" and len(data.rows):
        note = f"{how} A reward speaks of helpfulness: it need not tell them apart."
    title = label if label == name else f"{name}: {label}"  # also keeps the drawings' ids apart
    return Figure(title, score_histograms(title, sides, side_looks, lines), note)


def _reliability(assessment: Assessment, looks: Mapping[str, Look]) -> list[Figure]:
    curves = {name: model.sets["data"].reliability for name, model in assessment.models.items()}
    curves = {name: bins for name, bins in curves.items() if bins}
    if not curves:
        return []
    note = (
        "Points on the dashed line: of the answers given seven chances in ten of being unsafe, seven in ten are "
        "labelled so. Above it a model is too trusting, below it too strict. Faint points rest on fewer than "
        f"{FAINT_ROWS} rows; lines are 95 % intervals."
    )
    return [Figure("How far the probabilities can be believed", reliability_plot(curves, looks), note)]


def _bars(assessment: Assessment, looks: Mapping[str, Look], by_severity: bool) -> Iterator[Figure]:
    """Bars by category or severity of the figures that vary within such groups, on the first data set."""
    notes = {
        "accuracy": "Share told right: of a category or severity, all rows of which are unsafe, the share that was "
        "found; of the safe ones, the share left alone.",
        "severity_accuracy": "Share of rows given the severity they are labelled with.",
    }
    figures = ("accuracy", "cost_ranking_accuracy", "reward_accuracy", *(("severity_accuracy",) if by_severity else ()))
    what = "severity" if by_severity else "category"
    for figure in figures:
        groups = {name: _grouped(model.sets["data"], figure, by_severity) for name, model in assessment.models.items()}
        groups = {name: rates for name, rates in groups.items() if rates}
        title = f"{_ALL[figure].title} by {what}"
        svg = rates_by_group(title, groups, looks, by_severity) if groups else None
        if svg is not None:
            note = notes.get(figure, f"Pairs by the {what} of their responses: {_ALL[figure].note}. Chance is 50 %.")
            yield Figure(title, svg, f"{note} Lines are 95 % intervals.")


def _grouped(measured: ModelOnSet, figure: str, by_severity: bool) -> dict[str, Any]:
    groups = measured.by_severity if by_severity else measured.by_category
    return {group: found for group, figures in groups.items() if (found := figures.get(figure)) is not None}


def _occurring(assessment: Assessment) -> dict[str, list[str]]:
    """The categories of each taxonomy that a model on the page has."""
    known = {label for model in assessment.models.values() for label in model.sets["data"].by_label}
    taxonomies = {"pku": PKU_CATEGORIES, "beavertails": BEAVERTAILS_CATEGORIES}
    return {name: [label for label in labels if label in known] for name, labels in taxonomies.items()}


def cell(value: Estimate | float, is_share: bool) -> str:
    """A figure of a table cell, with or without an interval."""
    return number(value.value if isinstance(value, Estimate) else value, is_share)
