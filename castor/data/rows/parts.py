"""A sequence of rows that lies in several parts, one after the other."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Generic, TypeVar, overload

Row = TypeVar("Row")


class PartedRows(Sequence[Row], Generic[Row]):
    """Finds the part that a row lies in; a subclass reads the row from it."""

    def __init__(self, lengths: Iterable[int]) -> None:
        """`lengths` are the numbers of rows of the parts, in order."""
        self._ends = list(accumulate(lengths))

    @abstractmethod
    def _row(self, part: int, place: int) -> Row:
        """The row at `place` in a part; both count from 0."""

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        part = bisect_right(self._ends, position)
        return self._row(part, position - (self._ends[part - 1] if part else 0))
