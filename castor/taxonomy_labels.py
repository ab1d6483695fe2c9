"""Label matrices of the two taxonomies: from one to the other, and a model of one scored on labels of the other.

The taxonomies are related, not nested (castor/taxonomy.py): a translated label says that a category *may* apply. So a
translated matrix is a superset, and must not be compared label by label: a category with three counterparts would count
as up to two false alarms. `related_scores` compares through the relation instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES, pku_to_beavertails

Labels = NDArray[np.bool_]
"""[rows, 14] or [rows, 19] bool; the columns are BEAVERTAILS_CATEGORIES or PKU_CATEGORIES in their order."""

RELATION: Labels = np.array(
    [[name in pku_to_beavertails([pku]) for pku in PKU_CATEGORIES] for name in BEAVERTAILS_CATEGORIES]
)
"""[14, 19] bool: do the two categories share cases?"""


@dataclass(frozen=True)
class RelatedScores:
    """Predictions of one taxonomy against labels of the other.

    `precision`: share of predicted categories that are related to a category the row has. `recall`: share of the
    categories rows have that are related to a predicted one. `f1`: their harmonic mean. None where there is nothing to
    count: no prediction, no label, or neither.
    """

    precision: float | None
    recall: float | None
    f1: float | None


def label_matrix(rows: Iterable[Collection[str]], taxonomy: tuple[str, ...]) -> Labels:
    """[rows, len(taxonomy)] bool from each row's categories. Raises ValueError for a name outside the taxonomy."""
    columns = {name: column for column, name in enumerate(taxonomy)}
    indices = [[_column(columns, name) for name in row] for row in rows]
    labels = np.zeros((len(indices), len(taxonomy)), dtype=np.bool_)
    for row, found in enumerate(indices):
        labels[row, found] = True
    return labels


def translate_labels(labels: Labels) -> Labels:
    """[n, 14] to [n, 19], or [n, 19] to [n, 14]: every category related to one of the row's. A superset; see above.

    Every category has a counterpart, so a row that is in no category stays so, and no other row becomes one.

    Raises:
        ValueError: the labels are not bool, or of another width.
    """
    _require_labels(labels)
    relation = RELATION if labels.shape[1] == len(BEAVERTAILS_CATEGORIES) else RELATION.T
    return labels @ relation  # of booleans: or of ands


def related_scores(predicted: Labels, actual: Labels) -> RelatedScores:
    """Score predictions [n, 14] on labels [n, 19], or [n, 19] on [n, 14]. Both of one width are compared directly.

    Raises:
        ValueError: the labels are not bool, of another width, or of different numbers of rows.
    """
    _require_labels(predicted)
    _require_labels(actual)
    if len(predicted) != len(actual):
        raise ValueError(f"{len(predicted)} rows of predictions do not go with {len(actual)} rows of labels")
    same = predicted.shape[1] == actual.shape[1]
    right = predicted & (actual if same else translate_labels(actual))
    found = actual & (predicted if same else translate_labels(predicted))
    precision, recall = _share(right, predicted), _share(found, actual)
    if precision is None or recall is None:
        return RelatedScores(precision, recall, None)
    total = precision + recall
    return RelatedScores(precision, recall, 2 * precision * recall / total if total else 0.0)


def _share(hits: Labels, of: Labels) -> float | None:
    count = int(of.sum())
    return int(hits.sum()) / count if count else None


def _column(columns: dict[str, int], name: str) -> int:
    if name not in columns:
        raise ValueError(f"{name!r} is no category of this taxonomy, which begins with {next(iter(columns))!r}")
    return columns[name]


def _require_labels(labels: Labels) -> None:
    widths = (len(BEAVERTAILS_CATEGORIES), len(PKU_CATEGORIES))
    if labels.ndim != 2 or labels.shape[1] not in widths or labels.dtype != np.bool_:
        wanted = f"bool [rows, {widths[0]} or {widths[1]}]"
        raise ValueError(f"labels are {labels.dtype} of shape {labels.shape}, not {wanted}")
