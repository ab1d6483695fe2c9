"""The labelled rows that models and judges are measured on, with every distinct text once."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castor.config.data import DataSource
from castor.data.rows.load import load_preferences, load_qa
from castor.data.rows.schemas import Exchange, PreferenceRow, QARow
from castor.data.sources.report import RowReport
from castor.evaluation.assessment import ModelKind, SetName
from castor.io.errors import CastorError
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES, beavertails_to_pku, pku_to_beavertails
from castor.taxonomy_labels import label_matrix

SAFE = "safe"  # the group of rows in no category


@dataclass(frozen=True)
class LabelledSet:
    """Rows with a safety label, pairs, and the distinct texts of both."""

    name: SetName
    source: DataSource
    rows: list[QARow]  # is_safe is given
    pairs: list[PreferenceRow]
    texts: list[Exchange]
    row_texts: NDArray[np.int64]  # [rows] index into texts
    pair_texts: NDArray[np.int64]  # [pairs, 2] index into texts
    row_prompts: NDArray[np.int64]  # [rows] one integer for each prompt
    pair_prompts: NDArray[np.int64]  # [pairs]
    dropped: dict[str, int]

    @property
    def unsafe(self) -> NDArray[np.bool_]:
        """[rows] the labels."""
        return np.array([not row.is_safe for row in self.rows], dtype=bool)

    @property
    def prompt_count(self) -> int:
        """Different prompts of rows and pairs."""
        return len(np.union1d(self.row_prompts, self.pair_prompts))


def load_labelled(name: SetName, source: DataSource, kinds: Collection[ModelKind]) -> LabelledSet:
    """What models of these kinds need of a source: pairs for reward and cost, safety labels for cost and moderation.

    Raises CastorError when the source lacks a label that one of the kinds needs, or every row has the same one.
    """
    report = RowReport()
    rows: list[QARow] = []
    pairs: list[PreferenceRow] = []
    if {"reward", "cost"} & set(kinds):
        pairs = load_preferences(source, report)
    if {"cost", "moderation"} & set(kinds):
        report = RowReport()
        rows = load_qa(source, report, need=["is_safe"])
    if "reward" in kinds and not any(row.better_response_id is not None for row in pairs):
        raise _lacking(source, "reward", "better_response_id")
    if "cost" in kinds and not any(_ranked_by_safety(row) for row in pairs):
        raise _lacking(source, "cost", "safer_response_id and both safety flags")
    if rows and len({row.is_safe for row in rows}) == 1:
        only = SAFE if rows[0].is_safe else "unsafe"
        raise CastorError(
            f"all {len(rows)} rows of {source.source} are labelled {only}: false positives, F1 and calibration need "
            "rows of both kinds; choose another source or split"
        )
    texts: dict[Exchange, int] = {}
    row_texts = [texts.setdefault(row.exchange, len(texts)) for row in rows]
    pair_texts = [[texts.setdefault(each, len(texts)) for each in row.exchanges] for row in pairs]
    prompts: dict[Hashable, int] = {}
    return LabelledSet(
        name, source, rows, pairs, list(texts),
        np.array(row_texts, dtype=np.int64), np.array(pair_texts, dtype=np.int64).reshape(-1, 2),
        _numbered((row.key for row in rows), prompts), _numbered((row.key for row in pairs), prompts),
        dict(report.reasons()),
    )  # fmt: skip


def _ranked_by_safety(row: PreferenceRow) -> bool:
    return None not in (row.safer_response_id, row.is_response_0_safe, row.is_response_1_safe)


def better_pairs(data: LabelledSet) -> NDArray[np.int64]:
    """[n] indices of the pairs with a more helpful response."""
    return np.flatnonzero([row.better_response_id is not None for row in data.pairs])


def safer_pairs(data: LabelledSet) -> NDArray[np.int64]:
    """[n] indices of the pairs with a less harmful response and both safety flags."""
    return np.flatnonzero([_ranked_by_safety(row) for row in data.pairs])


def data_taxonomy(rows: Iterable[QARow]) -> tuple[str, ...]:
    """The taxonomy whose names the rows have; of rows without categories, that of PKU-SafeRLHF."""
    names = {name for row in rows for name in row.category or ()}
    return BEAVERTAILS_CATEGORIES if names and names <= set(BEAVERTAILS_CATEGORIES) else PKU_CATEGORIES


def label_vectors(
    rows: Iterable[QARow], categories: tuple[str, ...]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], bool]:
    """Labels [rows, categories] in a model's taxonomy, which rows [rows] have any, and whether one was translated."""
    translate = pku_to_beavertails if set(categories) == set(BEAVERTAILS_CATEGORIES) else beavertails_to_pku
    known = [row.category for row in rows]
    mapped = any(not names <= set(categories) for names in known if names is not None)
    own = [None if names is None else (names & set(categories)) | translate(names - set(categories)) for names in known]
    vectors = label_matrix([names or () for names in own], categories)
    return vectors, np.array([names is not None for names in own], dtype=bool), mapped


def category_groups(categories: list[frozenset[str] | None]) -> dict[str, NDArray[np.bool_]]:
    """A mask [n] for each category that occurs, in the order of the taxonomies, and one for items in none."""
    found: dict[str, NDArray[np.bool_]] = {}
    for name in (*PKU_CATEGORIES, *BEAVERTAILS_CATEGORIES):
        inside = np.array([names is not None and name in names for names in categories], dtype=bool)
        if inside.any():
            found[name] = inside
    if found:
        found[SAFE] = np.array([names is not None and not names for names in categories], dtype=bool)
    return found


def _numbered(keys: Iterable[Hashable], numbers: dict[Hashable, int]) -> NDArray[np.int64]:
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _lacking(source: DataSource, kind: str, label: str) -> CastorError:
    return CastorError(
        f"{source.source} has no pair with {label}, which a {kind} model is measured by: "
        f"choose another source, or leave the {kind} model out"
    )
