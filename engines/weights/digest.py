"""The digest of weights: exact, computed where the tensors are, and the same on every device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

Tensors = Iterable[tuple[str, Tensor]]  # full weights under their Hugging Face names

ROW = 4096  # words
ROWS_AT_A_TIME = {"cpu": 16, "cuda": 4096}  # in 64 bits: a part of the cache; a small part of the GPU's memory


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
            self._names.append(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}")
            self._sums.append(checksum(tensor))
            yield name, tensor

    def over(self, base: str | None) -> str:
        """The digest as text: of the added tensors alone, or of them and the base that was loaded before."""
        lines = (f"{name} {sums.tolist()}\n" for name, sums in zip(self._names, self._sums, strict=True))
        own = _hashed("".join(lines))
        return own if base is None else joined_digest(base, own)


def joined_digest(base: str, own: str) -> str:
    """Digest of an update over a base, from the digests of both parts."""
    return _hashed(f"{base} {own}")


def checksum(tensor: Tensor) -> Tensor:
    """[2] int64 on the tensor's device: Σ w_i and Σ i · w_i modulo 2^64.

    w_0, w_1, ... are the tensor's bytes as little-endian int32 words, the last of them filled up with zeros. Integers
    are summed, so no order of summation changes the result. A word that differs changes the first sum; two that have
    changed places change the second, as (i - j)(w_i - w_j) is less than 2^64 for tensors of up to 2^31 words.
    """
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if raw.data_ptr() % 4 or raw.storage_offset() % 4:
        raw = raw.clone()
    whole = raw.numel() // (4 * ROW) * (4 * ROW)
    rest = torch.zeros(4 * ROW, dtype=torch.uint8, device=raw.device)
    rest[: raw.numel() - whole] = raw[whole:]
    words = raw[:whole].view(torch.int32).view(-1, ROW)
    columns = torch.zeros(ROW, dtype=torch.int64, device=raw.device)
    rows = []
    for block in (*words.split(ROWS_AT_A_TIME[raw.device.type]), rest.view(torch.int32).view(1, ROW)):
        wide = block.to(torch.int64)
        columns += wide.sum(0)
        rows.append(wide.sum(1))
    weighted = _weighted(columns) + ROW * _weighted(torch.cat(rows))  # i = ROW · row + column
    return torch.stack([columns.sum(), weighted])


def _weighted(values: Tensor) -> Tensor:
    return (values * torch.arange(len(values), device=values.device)).sum()


def _hashed(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
