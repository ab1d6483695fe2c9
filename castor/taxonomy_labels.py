"""Harm categories of rows as a label matrix."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from castor.taxonomy import nearest_category


def label_matrix(rows: Iterable[Collection[str]], taxonomy: tuple[str, ...]) -> NDArray[np.bool_]:
    """[rows, len(taxonomy)] bool from each row's categories. Raises ValueError for a name outside the taxonomy."""
    columns = {name: column for column, name in enumerate(taxonomy)}
    indices = [[_column(columns, name) for name in row] for row in rows]
    labels = np.zeros((len(indices), len(taxonomy)), dtype=np.bool_)
    for row, found in enumerate(indices):
        labels[row, found] = True
    return labels


def _column(columns: dict[str, int], name: str) -> int:
    if name not in columns:
        raise ValueError(
            f"{name!r} is no category of this taxonomy; the nearest one is {nearest_category(name, columns)!r}"
        )
    return columns[name]
