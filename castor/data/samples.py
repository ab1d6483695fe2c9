"""Rows as token sequences, ready to be packed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from castor.data.template import PromptTemplate
from castor.packing import PackedRows, pack_rows


@dataclass(frozen=True)
class PackedSamples:
    """Some samples packed for one forward pass."""

    rows: PackedRows
    prompt_lengths: Tensor  # [n] int64, n = samples * per_sample
    lengths: Tensor  # [n] int64

    def to(self, device: torch.device) -> PackedSamples:
        """A copy on `device`."""
        return PackedSamples(self.rows.to(device), self.prompt_lengths.to(device), self.lengths.to(device))

    def last_positions(self) -> Tensor:
        """[n] flat position of each sequence's last token."""
        return torch.cumsum(self.lengths, 0) - 1

    def target_positions(self, train_on_prompt: bool) -> Tensor:
        """Flat positions of the tokens to predict: the responses', or all but each sequence's first."""
        starts = torch.cumsum(self.lengths, 0) - self.lengths
        first = starts + (torch.ones_like(starts) if train_on_prompt else self.prompt_lengths)
        ends = starts + self.lengths
        spans = [torch.arange(a, b) for a, b in zip(first.tolist(), ends.tolist(), strict=True)]
        flat = torch.cat(spans) if spans else torch.empty(0, dtype=torch.int64)
        return flat.to(self.lengths.device)


class Samples:
    """Samples of `per_sample` prompt + response sequences each: one for SFT, two for preferences."""

    def __init__(self, template: PromptTemplate, texts: Iterable[Sequence[tuple[str, str]]], max_length: int) -> None:
        """Tokenise; a sample with a sequence longer than `max_length` is left out and counted in `too_long`."""
        self.kept: list[int] = []  # index into `texts` of every sample that was kept
        self.too_long = 0
        self._sequences: list[list[tuple[NDArray[np.int64], int]]] = []
        for index, sample in enumerate(texts):
            encoded = []
            for prompt, response in sample:
                head = template.encode_prompt(prompt)
                encoded.append((np.array([*head, *template.encode_response(response)], dtype=np.int64), len(head)))
            if max(len(tokens) for tokens, _ in encoded) > max_length:
                self.too_long += 1
                continue
            self.kept.append(index)
            self._sequences.append(encoded)

    def __len__(self) -> int:
        return len(self._sequences)

    def lengths(self) -> NDArray[np.int64]:
        """[samples] tokens of all sequences of a sample."""
        return np.array([sum(len(tokens) for tokens, _ in sample) for sample in self._sequences], dtype=np.int64)

    def targets(self, samples: NDArray[np.int64], train_on_prompt: bool) -> int:
        """Number of tokens to predict in the given samples."""
        return sum(
            len(tokens) - (1 if train_on_prompt else head) for i in samples for tokens, head in self._sequences[i]
        )

    def pack(self, samples: NDArray[np.int64], pack_length: int) -> PackedSamples:
        """The sequences of the given samples, in order."""
        chosen = [sequence for i in samples for sequence in self._sequences[i]]
        lengths = np.array([len(tokens) for tokens, _ in chosen], dtype=np.int64)
        flat = np.concatenate([tokens for tokens, _ in chosen]) if chosen else np.empty(0, dtype=np.int64)
        return PackedSamples(
            pack_rows(flat, lengths, pack_length),
            torch.tensor([head for _, head in chosen], dtype=torch.int64),
            torch.from_numpy(lengths),
        )
