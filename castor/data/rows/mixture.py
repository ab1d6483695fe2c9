"""Several sources as one set of rows: proportions, weights, and how many rows each gives.

`proportion` keeps that share of a source's good rows, drawn without replacement. `weight` then decides how many rows
the sources give relative to each other: source i gives w_i · scale rows. The scale is the largest at which no source
without `replacement` runs out, min_i n_i / w_i over those sources; where all of them have it, the smallest at which
every row is used, max_i n_i / w_i. A source with replacement that has too few rows gives whole passes over them and
then a random choice without replacement, so that the numbers of times two of its rows occur differ by one at most.
Without weights the sources follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from castor.config.data import DataSource, mixture_finding
from castor.data.rows.parts import PartedRows
from castor.io.errors import CastorError

Row = TypeVar("Row")


class Mixture(PartedRows[Row], Generic[Row]):
    """Chosen rows of several parts, read from them when asked for: 8 bytes a row here, however large the rows are."""

    def __init__(self, parts: Sequence[Sequence[Row]], chosen: Sequence[NDArray[np.int64]]) -> None:
        """`chosen[i]` are the indices of the rows of `parts[i]`, in the order in which they are given."""
        super().__init__(map(len, chosen))
        self.parts, self.chosen = list(parts), list(chosen)

    def _row(self, part: int, place: int) -> Row:
        return self.parts[part][int(self.chosen[part][place])]

    def __iter__(self) -> Iterator[Row]:
        for part, indices in zip(self.parts, self.chosen, strict=True):
            for index in indices:
                yield part[int(index)]

    def where(self, keep: NDArray[np.bool_]) -> Mixture[Row]:
        """The rows at the places where `keep` [len(self)] is true, in the same order, from the same parts."""
        shares = np.split(keep, self._ends[:-1])
        return Mixture(self.parts, [chosen[share] for chosen, share in zip(self.chosen, shares, strict=True)])


def mix(sources: Sequence[DataSource], parts: Sequence[Sequence[Row]], seed: int) -> Mixture[Row]:
    """The mixture of the good rows of every source: a function of the configs, the numbers of rows and `seed`.

    Rows of one source stay together and in order. Raises CastorError where only some sources have a weight, and for a
    source that would give no row.
    """
    if (finding := mixture_finding(sources)) is not None:
        raise CastorError(finding)
    generators = [np.random.default_rng([seed, number]) for number in range(len(sources))]
    kept = [
        _sample(np.arange(len(rows)), max(1, round(source.proportion * len(rows))) if len(rows) else 0, generator)
        for source, rows, generator in zip(sources, parts, generators, strict=True)
    ]
    counts = _counts(sources, [len(indices) for indices in kept])
    for source, count, rows in zip(sources, counts, parts, strict=True):
        if not count and len(rows):
            raise CastorError(f"the weight {source.weight:g} of {source.source} gives it no row; raise it")
    return Mixture(parts, [_sample(*item) for item in zip(kept, counts, generators, strict=True)])


def _counts(sources: Sequence[DataSource], sizes: Sequence[int]) -> list[int]:
    """The number of rows each source gives."""
    weights = [source.weight for source in sources if source.weight is not None]
    if not weights:
        return list(sizes)
    scales = [size / weight for size, weight in zip(sizes, weights, strict=True)]
    limits = [scale for scale, source in zip(scales, sources, strict=True) if not source.replacement]
    scale = min(limits) if limits else max(scales)
    # the source that sets the scale gives exactly its rows; rounding down keeps the others within theirs
    return [int(round(weight * scale, 6)) for weight in weights]


def _sample(indices: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`count` of the indices: whole passes over all of them, then a random rest; each pass in ascending order."""
    if len(indices) == 0:
        return indices[:0]
    passes, rest = divmod(count, len(indices))
    chosen = np.sort(generator.choice(indices, rest, replace=False))
    return np.concatenate([*[indices] * passes, chosen])
