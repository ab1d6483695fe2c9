"""Packing the sequences of a micro-batch into rows, and what of them is computed once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from castor.dealing import WORTH


@dataclass(frozen=True)
class Shared:
    """Sequences that begin as an earlier one does: of N sequences with T tokens, S are computed, and read by all."""

    own: Tensor  # [S] int64: which of the T tokens they are, in order
    places: Tensor  # [T] int64: where each of the T tokens is among them
    fresh: tuple[int, ...]  # [N] tokens of each sequence that are computed for it, at least its last one
    lengths: tuple[int, ...]  # [N] tokens of each

    def to(self, device: torch.device) -> Shared:
        """A copy on `device`."""
        return Shared(self.own.to(device), self.places.to(device), self.fresh, self.lengths)


@dataclass(frozen=True)
class PackedRows:
    """Sequences packed into B rows of L tokens; positions restart with every sequence.

    With `attention_mask=None` and no cache, transformers derives the block-diagonal mask from the positions, for most
    architectures (castor.models.backbone.isolates_sequences tells).
    The tail of a row is filled with single-token sequences (token 0, position 0) that nothing reads.
    """

    input_ids: Tensor  # [B, L] int64
    position_ids: Tensor  # [B, L] int64
    flat: Tensor  # [T] int64: where each token of the flat sequences lies in the flattened rows
    shared: Shared | None = None  # for models that can make use of it; None: too little is

    def to(self, device: torch.device) -> Self:
        """A copy on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("input_ids", "position_ids", "flat")}
        return replace(self, **moved, shared=None if self.shared is None else self.shared.to(device))

    def boundaries(self) -> tuple[Tensor, int]:
        """Where each sequence begins in the flattened rows, and where the last ends; tokens of the longest.

        Returns [N + 1] int32 for N sequences, and a number. Every token of filling is a sequence, and none goes on in
        the next row.
        """
        (starts,) = (self.position_ids.view(-1) == 0).nonzero(as_tuple=True)
        cuts = torch.cat([starts, starts.new_tensor([self.position_ids.numel()])])
        return cuts.int(), int(cuts.diff().max())

    def in_one_row(self) -> PackedRows:
        """The same sequences one after the other in a single row, without filling.

        For attention that is told where sequences begin, whatever the rows' width.
        """
        count = len(self.flat)
        if count == 0:
            return self
        ids, positions = (tokens.view(-1)[self.flat][None] for tokens in (self.input_ids, self.position_ids))
        return PackedRows(ids, positions, torch.arange(count, device=self.flat.device))

    def one_per_row(self) -> tuple[PackedRows, Tensor]:
        """The same sequences, each at the start of a row of its own, and the mask [N, L] int64 of real tokens.

        For models that cannot keep packed sequences apart: costs padding, changes no number.
        """
        if len(self.flat) == 0:
            return self, torch.ones_like(self.input_ids)
        offset = self.position_ids.view(-1)[self.flat]
        sequence = (offset == 0).cumsum(0) - 1
        count, width = int(sequence[-1]) + 1, int(offset.max()) + 1
        flat = sequence * width + offset
        input_ids, mask = self.input_ids.new_zeros(2, count * width)
        input_ids[flat], mask[flat] = self.input_ids.view(-1)[self.flat], 1
        position_ids = torch.arange(width, device=flat.device).expand(count, width)
        return PackedRows(input_ids.view(count, width), position_ids, flat), mask.view(count, width)


MASKED_WIDTH = 700  # tokens of a row at which masked attention takes as long as all else; of Llamas 256 and 576 wide
WIDTHS = 8  # how many are tried


def pack_rows(
    tokens: NDArray[np.integer], lengths: NDArray[np.integer], pack_length: int, *, masked: bool = False
) -> PackedRows:
    """First-fit-decreasing of flat sequences `tokens` [sum(lengths)] into rows of at most max(pack_length, longest).

    Where attention has to be `masked`, as on CPUs, it goes over whole rows, and its cost grows with their width: of
    several widths the one is taken whose rows cost least.
    """
    if len(lengths) == 0:  # an empty micro-batch still has to run a forward pass: one dummy token
        zero = torch.zeros((1, 1), dtype=torch.int64)
        return PackedRows(zero, zero.clone(), torch.empty(0, dtype=torch.int64))
    longest = int(max(lengths))
    capacities = [max(pack_length, longest)]
    if masked:
        capacities = np.unique(np.linspace(longest, capacities[0], WIDTHS, dtype=np.int64)).tolist()
    place, rows, width = min((_fit(lengths, capacity) for capacity in capacities), key=_cost)
    input_ids = np.zeros((rows, width), dtype=np.int64)
    position_ids = np.zeros((rows, width), dtype=np.int64)
    flat = np.empty(int(sum(lengths)), dtype=np.int64)
    start = 0
    for (row, column), length in zip(place, lengths, strict=True):
        end = start + int(length)
        input_ids[row, column : column + length] = tokens[start:end]
        position_ids[row, column : column + length] = np.arange(length)
        flat[start:end] = row * width + column + np.arange(length)
        start = end
    ids, positions, places = (torch.from_numpy(part) for part in (input_ids, position_ids, flat))
    return PackedRows(ids, positions, places, find_shared(tokens, lengths))


ALIKE = 8  # tokens with which two sequences have to begin alike


def find_shared(tokens: NDArray[np.integer], lengths: NDArray[np.integer]) -> Shared | None:
    """What flat sequences `tokens` [sum(lengths)] share: responses to one prompt, and what prompts begin with.

    Each is held against the one before it, and the first that begins as it does for 8, 16, 32, ... tokens.
    """
    ends = np.cumsum(lengths)
    sequences = [tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    first: dict[bytes, int] = {}
    own, places, fresh, taken = np.ones(len(tokens), dtype=bool), np.empty(len(tokens), dtype=np.int64), [], 0
    for number, sequence in enumerate(sequences):
        leaders, size = {number - 1} if number else set(), ALIKE
        while size < len(sequence):
            leaders.add(first.setdefault(sequence[:size].tobytes(), number))
            size *= 2
        count, leader = max(((alike(sequence, sequences[each]), each) for each in leaders - {number}), default=(0, 0))
        if count < ALIKE:
            count = 0
        start, end, shared_from = ends[number] - len(sequence), ends[number], ends[leader] - len(sequences[leader])
        own[start : start + count] = False
        places[start : start + count] = places[shared_from : shared_from + count]
        fresh.append(len(sequence) - count)
        places[start + count : end] = np.arange(taken, taken + fresh[-1])
        taken += fresh[-1]
    if taken > (1 - WORTH) * len(tokens):
        return None
    kept, where = torch.from_numpy(np.flatnonzero(own)), torch.from_numpy(places)
    return Shared(kept, where, tuple(fresh), tuple(int(length) for length in lengths))


def alike(sequence: NDArray[np.integer], other: NDArray[np.integer]) -> int:
    """With how many tokens a sequence begins as another one, its last token left out."""
    length = min(len(sequence) - 1, len(other))
    apart = np.flatnonzero(sequence[:length] != other[:length])
    return int(apart[0]) if len(apart) else length


_Fit: TypeAlias = tuple[list[tuple[int, int]], int, int]  # row and column of each sequence; rows; their width


def _fit(lengths: NDArray[np.integer], capacity: int) -> _Fit:
    used: list[int] = []
    place: list[tuple[int, int]] = [(0, 0)] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: (-int(lengths[i]), i)):
        length = int(lengths[index])
        row = next((r for r, u in enumerate(used) if u + length <= capacity), len(used))
        if row == len(used):
            used.append(0)
        place[index] = (row, used[row])
        used[row] += length
    return place, len(used), max(used)


def _cost(fit: _Fit) -> float:
    """Of the layers, in tokens, fillers included; masked attention with them."""
    _, rows, width = fit
    return rows * width * (1 + width / MASKED_WIDTH)
