"""The digest of weights: exact, computed where the tensors are, and the same on every device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

Tensors = Iterable[tuple[str, Tensor]]  # full weights under their Hugging Face names

ROW = 2048  # words
WORD = 8  # bytes
CACHED_ROWS = 16  # on a CPU: what is summed by rows is still in the cache when it is summed by columns
STEPS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # odd: multiplication modulo 2^64 is one-to-one


class Digest:
    """Of the names, dtypes, shapes and bytes of tensors, in the order in which they are added.

    It finds whatever did not arrive, or not where it belongs. It is no defence against somebody who looks for another
    set of weights with the same digest.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: list[Tensor] = []

    def adding(self, tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
        """The same tensors, each added as it passes."""
        for name, tensor in tensors:
            self._names.append(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\n")
            self._sums.append(sums(tensor))
            yield name, tensor

    def over(self, base: str | None) -> str:
        """The digest as text: of the added tensors alone, or of them and the base that was loaded before."""
        number = int(mixed(torch.cat(self._sums))) if self._sums else 0
        own = _hashed("".join(self._names) + str(number))
        return own if base is None else joined_digest(base, own)


def joined_digest(base: str, own: str) -> str:
    """Digest of an update over a base, from the digests of both parts."""
    return _hashed(f"{base} {own}")


def sums(tensor: Tensor) -> Tensor:
    """[ROW + rows] int64 on the tensor's device: what its columns add up to modulo 2^64, then its rows.

    The tensor's bytes are little-endian int64 words, and these are rows of ROW words; the last one is filled up with
    zeros. Integers are added, so no order of addition changes a sum. A word that differs changes two of the sums, and
    two words that have changed places change two or four.
    """
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if raw.data_ptr() % WORD or raw.storage_offset() % WORD:
        raw = raw.clone()
    whole = raw.numel() // (WORD * ROW) * (WORD * ROW)
    rest = torch.zeros(WORD * ROW, dtype=torch.uint8, device=raw.device)
    rest[: raw.numel() - whole] = raw[whole:]
    columns = rest.view(torch.int64)
    last = columns.sum().view(1)
    rows = []
    words = raw[:whole].view(torch.int64).view(-1, ROW)
    for block in words.split(CACHED_ROWS if raw.device.type == "cpu" else max(len(words), 1)):
        rows.append(block.sum(1))
        columns += block.sum(0)
    return torch.cat([columns, *rows, last])


def mixed(values: Tensor) -> Tensor:
    """[] int64: the sum modulo 2^64 of a hash of each value and its place (the finaliser of splitmix64; Steele, Lea,
    Flood 2014).

    At every place the hash is one-to-one, so a single value that differs always changes the sum; that several do not is
    a chance of 2^-64.
    """
    step, first, second = (each - (each >> 63 << 64) for each in STEPS)
    values = values + step * torch.arange(1, len(values) + 1, device=values.device)
    values = (values ^ _shifted(values, 30)) * first
    values = (values ^ _shifted(values, 27)) * second
    return (values ^ _shifted(values, 31)).sum()


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right, without the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _hashed(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
