"""Counts per prompt, and shares and correlations of their sums with intervals that resample prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from castor.statistics.bootstrap import Measure, figure_of_sums, resampled_sums

Floats = NDArray[np.float64]


class Cells:
    """Named sums, kept per prompt; a cell that was never added to is 0."""

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}
        self._entries: defaultdict[tuple[int, int], float] = defaultdict(float)
        self._prompts: dict[bytes, int] = {}

    def add(self, prompt: bytes, cell: str, amount: float = 1.0) -> None:
        """Add to one cell of one prompt."""
        row = self._prompts.setdefault(prompt, len(self._prompts))
        self._entries[row, self._columns.setdefault(cell, len(self._columns))] += amount

    def draw(self, seed: int) -> Draws:
        """Sum every cell over all prompts, and over 2000 samples of as many prompts drawn with replacement."""
        table = np.zeros((len(self._prompts), len(self._columns)))
        for (row, column), amount in self._entries.items():
            table[row, column] = amount
        return Draws(dict(self._columns), table, seed)


class Draws:
    """Cell sums of the data and of its resamples, and figures that are functions of such sums."""

    def __init__(self, columns: dict[str, int], table: Floats, seed: int) -> None:
        """`table` is [prompts, cells]; `columns` names its cells."""
        self._columns, self._table = columns, table
        self._drawn = resampled_sums(table, seed) if table.size else None

    def total(self, cell: str) -> float:
        """The sum of a cell over all prompts."""
        column = self._columns.get(cell)
        return 0.0 if column is None else float(self._table[:, column].sum())

    def share(self, part: str, whole: str) -> Measure | None:
        """part / whole, where `part` counts some of what `whole` counts. None as in `measure`."""
        return self.measure(_ratio, (part, whole), whole, is_share=True)

    def mean(self, values: str, count: str) -> Measure | None:
        """values / count, where `values` sums one value for each of `count`. None as in `measure`."""
        return self.measure(_ratio, (values, count), count)

    def measure(
        self, figure: Callable[..., Floats], cells: tuple[str, ...], count: str, is_share: bool = False
    ) -> Measure | None:
        """`figure` of the cells' sums, with its 95 % interval.

        `figure` takes one array (or number) a cell and gives NaN where it has no value; `count` is the cell that says
        what it is taken over. None when fewer than two prompts have any of that (then no interval exists), or when the
        figure has no value. Resamples without a value are left out; `is_share` as in `Statistic`.
        """
        column = self._columns.get(count)
        prompts = 0 if column is None else int((self._table[:, column] > 0).sum())
        if prompts < 2 or self._drawn is None:
            return None
        sums = [np.concatenate([[self.total(cell)], self._resamples(cell)]) for cell in cells]
        with np.errstate(divide="ignore", invalid="ignore"):
            values = figure(*sums)
        return figure_of_sums(float(values[0]), values[1:], is_share, round(self.total(count)), prompts)

    def _resamples(self, cell: str) -> Floats:
        assert self._drawn is not None
        column = self._columns.get(cell)
        return np.zeros(len(self._drawn)) if column is None else self._drawn[:, column]


def phi(both: Floats, only_first: Floats, only_second: Floats, neither: Floats) -> Floats:
    """The phi coefficient of 2 x 2 tables, which is Kendall's tau-b of two binary variables. NaN on an empty margin."""
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    covariance = both * neither - only_first * only_second
    return np.divide(covariance, np.sqrt(margins), out=np.full(np.shape(margins), np.nan), where=margins > 0)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom > 0)
