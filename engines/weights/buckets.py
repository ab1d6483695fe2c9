"""Tensors packed into flat buffers of bytes, so that a few large messages carry them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from engines.weights.digest import Tensors

BUCKET_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}  # on a CPU a bucket that was just written is still in the cache
ALIGNMENT = 16  # of every tensor's first byte: more than any dtype needs

Entry = tuple[str, str, list[int], int]  # name, dtype, shape, first byte
Bucket = tuple[list[Entry], Tensor]  # what is in it; its bytes, uint8 [n]


class Packer:
    """Fills two buffers in turn: one may be under way while the next bucket is gathered into the other."""

    def __init__(self, device: torch.device, bucket_bytes: int | None = None) -> None:
        self.bucket_bytes = bucket_bytes or BUCKET_BYTES[device.type]
        self._buffers = [torch.empty(0, dtype=torch.uint8, device=device) for _ in range(2)]
        self._turn = 0

    def pack(self, tensors: Tensors) -> Iterator[Bucket]:
        """Buckets of whole tensors, in their order. Each holds its bytes until the next but one is asked for.

        A tensor larger than a bucket has one of its own, and the buffer grows to its size.
        """
        entries: list[Entry] = []
        used = 0
        for name, tensor in tensors:
            if entries and used + tensor.nbytes > self.bucket_bytes:
                yield entries, self._take(used)
                entries, used = [], 0
            buffer = self._room(used + tensor.nbytes)
            view(buffer, tensor.dtype, tensor.shape, used).copy_(tensor)
            entries.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), used))
            used = -(-(used + tensor.nbytes) // ALIGNMENT) * ALIGNMENT
        if entries:
            yield entries, self._take(used)

    def _room(self, size: int) -> Tensor:
        """The buffer whose turn it is, of at least `size` bytes. Only an empty one grows: a bucket has its room."""
        buffer = self._buffers[self._turn]
        if len(buffer) < size:
            rounded = -(-max(size, self.bucket_bytes) // ALIGNMENT) * ALIGNMENT
            buffer = self._buffers[self._turn] = torch.empty(rounded, dtype=torch.uint8, device=buffer.device)
        return buffer

    def _take(self, used: int) -> Tensor:
        buffer = self._buffers[self._turn]
        self._turn = 1 - self._turn
        return buffer[:used]


def unpack(entries: Sequence[Entry], flat: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a bucket, as views of its bytes."""
    for name, dtype, shape, first in entries:
        yield name, view(flat, getattr(torch, dtype), shape, first)


def view(flat: Tensor, dtype: torch.dtype, shape: Sequence[int], first: int) -> Tensor:
    """The bytes from `first` on as a tensor."""
    size = math.prod(shape) * dtype.itemsize
    return flat[first : first + size].view(dtype).view(list(shape))
