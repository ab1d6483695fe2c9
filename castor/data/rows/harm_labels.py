"""The labels of QA rows as tensors, in the order of a moderation model's categories."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from castor.algorithms.moderation import UNKNOWN, Targets
from castor.data.rows.schemas import QARow
from castor.data.sources.report import require_both_classes
from castor.io.errors import CastorError
from castor.taxonomy import BEAVERTAILS_CATEGORIES, beavertails_to_pku, pku_to_beavertails


def moderation_targets(
    rows: Sequence[QARow], categories: Sequence[str], map_taxonomy: bool, severity: bool
) -> Targets:  # fmt: skip
    """What the rows say about `categories`, which are all those of one taxonomy.

    A safe row is in no category and has severity 0. An unsafe row without categories, or without a severity, leaves
    that part open; so does one whose severity is 0, which goes with safe and only with it.

    Args:
        rows: n rows, each with is_safe.
        categories: [K] names, in the order of the outputs.
        map_taxonomy: translate categories of the other taxonomy; otherwise a row that has one is an error.
        severity: severities are going to be learnt, so there have to be some.

    Raises:
        CastorError: the rows are all safe or all unsafe, no unsafe row names a category or (with `severity`) a
            severity, or a row is labelled in the other taxonomy.

    """
    place = {name: number for number, name in enumerate(categories)}
    labels = torch.zeros((len(rows), len(categories)), dtype=torch.bool)
    unsafe, labelled = (torch.zeros(len(rows), dtype=torch.bool) for _ in range(2))
    levels = torch.full((len(rows),), UNKNOWN)
    for number, row in enumerate(rows):  # once: they may come from a disk
        unsafe[number] = not row.is_safe
        labelled[number] = row.category is not None or bool(row.is_safe)
        levels[number] = 0 if row.is_safe else row.severity_level or UNKNOWN
        for name in _translated(row, place, map_taxonomy):
            labels[number, place[name]] = True
    _require_both_kinds(labels, unsafe, levels, severity)
    return Targets(labels, labelled, unsafe, levels)


def _translated(row: QARow, place: dict[str, int], map_taxonomy: bool) -> frozenset[str]:
    names = row.category or frozenset()
    foreign = names - place.keys()
    if not foreign:
        return names
    if not map_taxonomy:
        raise CastorError(
            f"a row to learn from is labelled {min(foreign)!r}, which is of the other taxonomy than the model's "
            f"{len(place)} categories: change taxonomy, or set map_taxonomy: true"
        )
    to_ours = pku_to_beavertails if BEAVERTAILS_CATEGORIES[0] in place else beavertails_to_pku
    return (names & place.keys()) | to_ours(foreign)


def _require_both_kinds(labels: torch.Tensor, unsafe: torch.Tensor, levels: torch.Tensor, severity: bool) -> None:
    require_both_classes((not flag for flag in unsafe.tolist()), "is_safe", "a moderation model")
    if not labels.any():
        raise CastorError(
            "no row names a harm category: a moderation model needs rows that do, beside mere safety flags"
        )
    if severity and not (levels > 0).any():
        raise CastorError("severity: true, but no unsafe row has a severity_level: give rows with one, or leave it out")
