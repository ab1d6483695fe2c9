"""Sequences whose beginnings need not be computed: another one has it, or they were read before.

Responses to one prompt share it (`SharedRows`); of a text that grows, such as a streamed answer, keys and values of
what was read are kept (`ContinuedRows`). The keys of a layer are then those of the beginning with the new ones behind
them, and a varlen kernel (`castor.models.attention`) takes more keys than queries. (transformers' caches are of a batch
of rows, padded to one length.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from castor.packing import PackedRows, alike


@dataclass(frozen=True)
class Prefix:
    """What a model has read of a sequence of n tokens."""

    tokens: NDArray[np.integer]  # [n]
    layers: dict[object, tuple[Tensor, Tensor]] = field(default_factory=dict)  # keys and values [n, heads, D] of each

    @property
    def token_bytes(self) -> int:
        """Of one token, in all layers."""
        return sum(part[0].nbytes for layer in self.layers.values() for part in layer)

    def unread(self, tokens: NDArray[np.integer]) -> int:
        """How many of the tokens [m] have yet to be read: the last one, whose output is asked for, always has."""
        return len(tokens) - alike(tokens, self.tokens)


class Continuation:
    """What the layers of one forward pass need to know: the prefix of each sequence, and where its new tokens are."""

    def __init__(
        self, sequences: Sequence[NDArray[np.integer]], before: Sequence[Prefix | None], kept: Sequence[bool]
    ) -> None:
        """`sequences` are N arrays of token ids, none empty; `before`: what was read of each; `kept`: what is to be."""
        self.sequences, self.before = sequences, before
        self.fresh = unread(sequences, before)
        self.lengths = [len(tokens) for tokens in sequences]
        self.read = [length - fresh for length, fresh in zip(self.lengths, self.fresh, strict=True)]
        self.after = [Prefix(tokens) if keep else None for tokens, keep in zip(sequences, kept, strict=True)]

    def rows(self, device: torch.device) -> ContinuedRows:
        """The new tokens, one sequence after the other in one row."""
        tokens = [sequence[read:] for sequence, read in zip(self.sequences, self.read, strict=True)]
        places = [np.arange(read, length) for read, length in zip(self.read, self.lengths, strict=True)]
        ids, positions = (torch.from_numpy(np.concatenate(part).astype(np.int64))[None] for part in (tokens, places))
        flat = torch.arange(ids.numel())
        return ContinuedRows(ids.to(device), positions.to(device), flat.to(device), continuation=self)

    def extended(self, layer: object, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Keys and values of a layer for the new tokens [T, heads, D], with those of the prefixes before them.

        Returns both [sum of the lengths, heads, D], where each sequence's begin and the last ends [N + 1] int32, and
        the longest. Of sequences that are kept they go into `after`, too.
        """
        whole: tuple[list[Tensor], list[Tensor]] = ([], [])
        new = zip(key.split(self.fresh), value.split(self.fresh), strict=True)
        for prefix, read, after, fresh in zip(self.before, self.read, self.after, new, strict=True):
            if prefix is not None and read:
                old = prefix.layers[layer]
                own = [torch.cat([part[:read], more]) for part, more in zip(old, fresh, strict=True)]
            else:
                own = list(fresh)
            if after is not None:  # a part of the batch's keys would keep all of them in memory
                after.layers[layer] = (own[0], own[1]) if read else (own[0].clone(), own[1].clone())
            for all_of, part in zip(whole, own, strict=True):
                all_of.append(part)
        keys, values = (torch.cat(all_of) for all_of in whole)
        return keys, values, _cuts(self.lengths, key.device), max(self.lengths)


@dataclass(frozen=True)
class SharedRows(PackedRows):
    """Tokens [1, S] of sequences that begin alike: what they share is there once, and `flat` finds it for each."""

    @classmethod
    def of(cls, rows: PackedRows) -> SharedRows:
        """The same sequences. Raises ValueError when they share nothing."""
        if rows.shared is None:
            raise ValueError("no sequence begins as another one does")
        at = rows.flat[rows.shared.own]
        ids, positions = (tokens.view(-1)[at][None] for tokens in (rows.input_ids, rows.position_ids))
        return cls(ids, positions, rows.shared.places, rows.shared)

    def boundaries(self) -> tuple[Tensor, int]:
        """As `ContinuedRows.boundaries`."""
        assert self.shared is not None
        return _cuts(self.shared.fresh, self.flat.device), max(self.shared.fresh)

    def extended(self, _layer: object, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """As `Continuation.extended`."""
        keys, values = (part.index_select(0, self.flat) for part in (key, value))
        return keys, values, *self._whole

    @cached_property
    def _whole(self) -> tuple[Tensor, int]:
        assert self.shared is not None
        return _cuts(self.shared.lengths, self.flat.device), max(self.shared.lengths)


@dataclass(frozen=True)
class ContinuedRows(PackedRows):
    """Tokens [1, T] of sequences that have been read in part."""

    continuation: Continuation = field(kw_only=True)

    def boundaries(self) -> tuple[Tensor, int]:
        """Where the new tokens of each sequence begin, and where the last end [N + 1] int32; most of one sequence."""
        fresh = self.continuation.fresh
        return _cuts(fresh, self.flat.device), max(fresh)

    def extended(self, layer: object, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """As `Continuation.extended`."""
        return self.continuation.extended(layer, key, value)


class Prefixes:
    """The prefixes that one model has read, by name, `tokens_kept` tokens in all. Those used last stay."""

    def __init__(self, tokens_kept: int) -> None:
        self.tokens_kept, self._held, self._kept = tokens_kept, 0, OrderedDict[Hashable, Prefix]()

    def get(self, name: Hashable) -> Prefix | None:
        """What was read of the sequence of that name; None if nothing, or if it had to go."""
        return self._kept.get(name)

    def fitting(self, names: Sequence[Hashable | None], lengths: Sequence[int]) -> list[bool]:
        """Which of N sequences that are read together to keep: those with a name, as long as there is room for all."""
        held = np.cumsum([0 if name is None else length for name, length in zip(names, lengths, strict=True)])
        return [name is not None and bool(sum_ <= self.tokens_kept) for name, sum_ in zip(names, held, strict=True)]

    def put(self, name: Hashable, prefix: Prefix) -> None:
        """Keep it in the place of what was read before."""
        former = self._kept.pop(name, None)
        self._held += len(prefix.tokens) - (0 if former is None else len(former.tokens))
        self._kept[name] = prefix
        while self._held > self.tokens_kept:
            _, oldest = self._kept.popitem(last=False)
            self._held -= len(oldest.tokens)


def unread(sequences: Sequence[NDArray[np.integer]], before: Sequence[Prefix | None]) -> list[int]:
    """[N] how many tokens of each sequence have yet to be read."""
    return [
        len(tokens) if prefix is None else prefix.unread(tokens)
        for tokens, prefix in zip(sequences, before, strict=True)
    ]


def _cuts(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
