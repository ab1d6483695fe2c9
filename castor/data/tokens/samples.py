"""Rows as token sequences, ready to be packed: flat arrays, in memory or in a file as large as the disk."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from castor.data.tokens.template import PromptTemplate
from castor.io.checkpoint import atomic_folder
from castor.io.files import read_json, write_json
from castor.packing import PackedRows, pack_rows

TOKENS_FILE, INDEX_FILE, COUNTS_FILE = "tokens.int32", "index.npz", "counts.json"
BLOCK = 256  # samples whose texts the tokenizer takes together

CPU = torch.device("cpu")


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
        heads = torch.ones_like(self.lengths) if train_on_prompt else self.prompt_lengths
        ends = torch.cumsum(self.lengths, 0)
        within = torch.arange(int(self.lengths.sum()), device=ends.device)
        starts = torch.repeat_interleave(ends - self.lengths + heads, self.lengths)
        return within[within >= starts]


class Samples:
    """Samples of `per_sample` sequences each: one for SFT, two for preferences.

    A sequence is (prompt, response) or (prompt, response, history).
    """

    def __init__(
        self,
        template: PromptTemplate,
        texts: Iterable[Sequence[Sequence[Any]]],
        max_length: int,
        folder: Path | None = None,
    ) -> None:
        """Tokenise; a sample with a sequence longer than `max_length` is left out and counted in `too_long`.

        With `folder`, tokens go there as they come (whole or not at all) and stay in the file, memory-mapped; `open`
        reads them again. Raises ValueError when samples differ in their number of sequences.
        """
        with ExitStack() as stack:
            aside = stack.enter_context(atomic_folder(folder)) if folder else None
            sink = stack.enter_context(open(aside / TOKENS_FILE, "wb")) if aside else None
            self._tokenise(template, texts, max_length, sink)
            if aside and sink:
                sink.flush()
                np.savez(aside / INDEX_FILE, lengths=self._lengths, heads=self._heads, kept=self.kept)
                write_json(aside / COUNTS_FILE, {"per_sample": self.per_sample, "too_long": self.too_long})
        if folder:
            self._tokens = _mapped(folder / TOKENS_FILE)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The samples that were tokenised into `folder`."""
        samples = cls.__new__(cls)
        counts, index = read_json(folder / COUNTS_FILE), np.load(folder / INDEX_FILE)
        samples.per_sample, samples.too_long = counts["per_sample"], counts["too_long"]
        samples._set_index(index["lengths"], index["heads"], index["kept"])
        samples._tokens = _mapped(folder / TOKENS_FILE)
        return samples

    def _tokenise(self, template: PromptTemplate, texts: Iterable[Any], max_length: int, sink: IO[Any] | None) -> None:
        tokens, lengths, heads, kept = array("i"), array("i"), array("i"), array("q")
        self.per_sample, self.too_long = 0, 0
        for index, sample in enumerate(_encoded(template, texts)):
            self.per_sample = self.per_sample or len(sample)
            if len(sample) != self.per_sample:
                raise ValueError(f"sample {index} has {len(sample)} sequences, those before it {self.per_sample}")
            if max(len(head) + len(response) for head, response in sample) > max_length:
                self.too_long += 1
                continue
            kept.append(index)
            for head, response in sample:
                sequence = array("i", [*head, *response])
                lengths.append(len(sequence))
                heads.append(len(head))
                if sink is None:
                    tokens.extend(sequence)
                else:
                    sequence.tofile(sink)
        self._set_index(*(np.array(column) for column in (lengths, heads, kept)))
        self._tokens = np.array(tokens, dtype=np.int32)

    def _set_index(self, lengths: NDArray[Any], heads: NDArray[Any], kept: NDArray[Any]) -> None:
        self._lengths, self._heads = lengths.astype(np.int32), heads.astype(np.int32)
        self._starts = np.cumsum(self._lengths, dtype=np.int64) - self._lengths
        self.kept: NDArray[np.int64] = kept.astype(np.int64)  # [samples] index into `texts` of every kept sample

    def __len__(self) -> int:
        return len(self.kept)

    def lengths(self) -> NDArray[np.int64]:
        """[samples] tokens of all sequences of a sample."""
        return self._lengths.reshape(len(self), self.per_sample).sum(1, dtype=np.int64)

    def targets(self, samples: NDArray[np.int64], train_on_prompt: bool) -> int:
        """Number of tokens to predict in the given samples."""
        chosen = self._sequences(samples)
        heads = len(chosen) if train_on_prompt else int(self._heads[chosen].sum(dtype=np.int64))
        return int(self._lengths[chosen].sum(dtype=np.int64)) - heads

    def pack(self, samples: NDArray[np.int64], pack_length: int, device: torch.device = CPU) -> PackedSamples:
        """The sequences of the given samples, in order, for a model on `device`."""
        chosen = self._sequences(samples)
        lengths = self._lengths[chosen].astype(np.int64)
        spans = [self._tokens[start : start + n] for start, n in zip(self._starts[chosen], lengths, strict=True)]
        flat = np.concatenate(spans) if spans else np.empty(0, dtype=np.int32)
        return PackedSamples(
            pack_rows(flat, lengths, pack_length, masked=device.type == "cpu"),
            torch.from_numpy(self._heads[chosen].astype(np.int64)),
            torch.from_numpy(lengths),
        ).to(device)

    def _sequences(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the sequences of the given samples."""
        return (np.asarray(samples, dtype=np.int64)[:, None] * self.per_sample + np.arange(self.per_sample)).ravel()


def _encoded(
    template: PromptTemplate, samples: Iterable[Sequence[Sequence[Any]]]
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Of every sample its sequences, each as the ids of what is asked and of the response. A text is encoded once a
    block: both responses of a pair answer one prompt, and a response may be in several pairs.
    """
    stream = iter(samples)
    while block := list(islice(stream, BLOCK)):
        sequences = [sequence for sample in block for sequence in sample]
        asked = list(dict.fromkeys((prompt, *history) for prompt, _, *history in sequences))
        responses = list(dict.fromkeys(response for _, response, *_ in sequences))
        head_of = dict(zip(asked, template.encode_texts([template.prompt_text(*key) for key in asked]), strict=True))
        ids_of = dict(zip(responses, template.encode_responses(responses), strict=True))
        for sample in block:
            yield [(head_of[prompt, *history], ids_of[response]) for prompt, response, *history in sample]


def _mapped(path: Path) -> NDArray[np.int32]:
    return np.memmap(path, dtype=np.int32, mode="r") if path.stat().st_size else np.empty(0, dtype=np.int32)
