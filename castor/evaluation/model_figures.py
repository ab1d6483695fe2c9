"""From a model's outputs on a labelled set to its figures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from castor.evaluation.assessment import Figures, Label, ModelOnSet
from castor.evaluation.labelled import LabelledSet, better_pairs, category_groups, label_vectors, safer_pairs
from castor.evaluation.model_outputs import Outputs
from castor.evaluation.records import SEVERITIES
from castor.statistics import classification
from castor.statistics.bootstrap import Statistic, measure
from castor.statistics.calibration import Bin, brier_score, expected_calibration_error, reliability

# Rows of one category are all unsafe, rows of one severity all alike: other figures say nothing within such a group.
_GROUPED = (
    "reward_accuracy", "cost_ranking_accuracy", "cost_sign_accuracy", "accuracy", "exact_match", "severity_accuracy",
)  # fmt: skip
_Groups = dict[str, Figures]


def figures_of(outputs: Outputs, data: LabelledSet, seed: int) -> ModelOnSet:
    """Every figure on `data` that these outputs give."""
    collected = _Collected(data, seed)
    if outputs.kind == "reward":
        collected.add_reward_figures(outputs)
    else:
        if outputs.kind == "cost":
            collected.add_cost_figures(outputs)
        collected.add_verdict_figures(outputs)
        collected.add_label_figures(outputs)
        collected.add_severity_figures(outputs)
    return ModelOnSet(
        too_long=int((~outputs.kept).sum()),
        overall=collected.overall,
        by_category=collected.by_category,
        by_severity=collected.by_severity,
        by_label=collected.by_label,
        labels_mapped=collected.labels_mapped,
        reliability=collected.reliability_curve(outputs),
    )


class _Collected:
    """The figures of one model on one data set; each `add` method adds those of one kind of rows or pairs."""

    def __init__(self, data: LabelledSet, seed: int) -> None:
        self.data, self.seed = data, seed
        self.overall: Figures = {}
        self.by_category: _Groups = {}
        self.by_severity: _Groups = {}
        self.by_label: dict[str, Label] = {}
        self.labels_mapped = False

    def add_reward_figures(self, outputs: Outputs) -> None:
        pairs = self._kept_pairs(outputs, better_pairs(self.data))
        better = np.array([self.data.pairs[i].better_response_id for i in pairs], dtype=np.int64)
        first, second = self._pair_scores(outputs, pairs, better)
        self._add_pairs({"reward_accuracy": classification.ranking_accuracy(first, second)}, pairs)

    def add_cost_figures(self, outputs: Outputs) -> None:
        pairs = self._kept_pairs(outputs, safer_pairs(self.data))
        rows = [self.data.pairs[i] for i in pairs]
        safer = np.array([row.safer_response_id for row in rows], dtype=np.int64)
        safe, unsafe = self._pair_scores(outputs, pairs, safer)
        self._add_pairs({"cost_ranking_accuracy": classification.ranking_accuracy(unsafe, safe)}, pairs)
        assert outputs.scores is not None
        both = self.data.pair_texts[pairs].ravel()  # a pair's two responses follow each other
        flags = np.array([(row.is_response_0_safe, row.is_response_1_safe) for row in rows], dtype=bool).ravel()
        answers = [row.qa(i) for row in rows for i in range(2)]
        self._add(
            {"cost_sign_accuracy": classification.sign_accuracy(outputs.scores[both], flags)},
            np.repeat(self.data.pair_prompts[pairs], 2),
            [answer.category for answer in answers],
            [answer.severity_level for answer in answers],
        )

    def add_verdict_figures(self, outputs: Outputs) -> None:
        rows, texts = self._kept_rows(outputs)
        assert outputs.unsafe is not None
        unsafe = self.data.unsafe[rows]
        statistics = classification.binary(outputs.unsafe[texts], unsafe)
        if outputs.probability is not None:
            probability = outputs.probability[texts]
            statistics["auroc"] = classification.auroc(probability, unsafe)
            statistics["ece"] = expected_calibration_error(probability, unsafe)
            statistics["brier"] = brier_score(probability, unsafe)
        self._add_rows(statistics, rows)

    def add_label_figures(self, outputs: Outputs) -> None:
        if outputs.labels is None:
            return
        rows, texts = self._kept_rows(outputs)
        actual, known, mapped = label_vectors([self.data.rows[i] for i in rows], outputs.categories)
        if not known.any():
            return
        self.labels_mapped = mapped
        predicted, actual = outputs.labels[texts][known], actual[known]
        overall, each = classification.labels(predicted, actual, outputs.categories)
        self._add_rows(overall, rows[known])
        f1 = measure(each, self.data.row_prompts[rows[known]], seed=self.seed)[""]
        self.by_label = {
            name: Label(positives=int(actual[:, i].sum()), f1=f1[name]) for i, name in enumerate(outputs.categories)
        }

    def add_severity_figures(self, outputs: Outputs) -> None:
        rows, texts = self._kept_rows(outputs)
        known = np.array([self.data.rows[i].severity_level is not None for i in rows], dtype=bool)
        if outputs.severity is None or not known.any():
            return
        actual = np.array([self.data.rows[i].severity_level for i in rows[known]], dtype=np.int64)
        predicted = outputs.severity[texts[known]]
        self._add_rows(classification.severity(predicted, actual, len(SEVERITIES)), rows[known])

    def reliability_curve(self, outputs: Outputs) -> list[Bin]:
        if outputs.probability is None:
            return []
        rows, texts = self._kept_rows(outputs)
        prompts = self.data.row_prompts[rows]
        return reliability(outputs.probability[texts], self.data.unsafe[rows], prompts, seed=self.seed)

    def _kept_rows(self, outputs: Outputs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices of the rows whose text was not too long, and of their texts."""
        rows = np.flatnonzero(outputs.kept[self.data.row_texts])
        return rows, self.data.row_texts[rows]

    def _kept_pairs(self, outputs: Outputs, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        return pairs[outputs.kept[self.data.pair_texts[pairs]].all(axis=1)]

    def _pair_scores(
        self, outputs: Outputs, pairs: NDArray[np.int64], preferred: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores of the preferred response of each pair and of the other."""
        assert outputs.scores is not None
        scores, at = outputs.scores[self.data.pair_texts[pairs]], np.arange(len(pairs))
        return scores[at, preferred], scores[at, 1 - preferred]

    def _add_pairs(self, statistics: Mapping[str, Statistic], pairs: NDArray[np.int64]) -> None:
        categories, severities = [], []
        for row in (self.data.pairs[i] for i in pairs):
            names = (row.response_0_harm_category, row.response_1_harm_category)
            levels = (row.response_0_severity_level, row.response_1_severity_level)
            categories.append(None if names[0] is None or names[1] is None else names[0] | names[1])
            severities.append(None if levels[0] is None or levels[1] is None else max(levels[0], levels[1]))
        self._add(statistics, self.data.pair_prompts[pairs], categories, severities)

    def _add_rows(self, statistics: Mapping[str, Statistic], rows: NDArray[np.int64]) -> None:
        chosen = [self.data.rows[i] for i in rows]
        self._add(
            statistics,
            self.data.row_prompts[rows],
            [row.category for row in chosen],
            [row.severity_level for row in chosen],
        )

    def _add(
        self,
        statistics: Mapping[str, Statistic],
        prompts: NDArray[np.int64],
        categories: list[frozenset[str] | None],
        severities: list[int | None],
    ) -> None:
        self.overall |= measure(statistics, prompts, seed=self.seed)[""]
        grouped = {name: statistic for name, statistic in statistics.items() if name in _GROUPED}
        levels = {
            name: np.array([severity == level for severity in severities], dtype=bool)
            for level, name in enumerate(SEVERITIES)
            if level in severities
        }
        for into, groups in ((self.by_category, category_groups(categories)), (self.by_severity, levels)):
            for group, figures in measure(grouped, prompts, groups, self.seed).items():
                into.setdefault(group, {}).update(figures)
