"""Weights through host memory: buckets in the object store, which every engine of a node reads without a copy."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from engines.weights import base
from engines.weights.base import WeightUpdate
from engines.weights.digest import Tensors

BUCKET_BYTES = 256 << 20
READ_TIMEOUT_S = 600.0

# name -> (raw bytes as uint8 [n], dtype name, shape): numpy has no bfloat16, and raw bytes travel without a copy
Bucket = dict[str, tuple[np.ndarray, str, tuple[int, ...]]]


class Sender(base.Sender):
    """Puts buckets of tensors into the object store. An update's pieces are refs to `Bucket`s."""

    transport = "host"

    def carry(self, tensors: Tensors) -> list[Any]:
        """Copy the tensors to the CPU and put them, bucket by bucket."""
        refs: list[Any] = []
        bucket: Bucket = {}
        size = 0
        for name, tensor in tensors:
            copy = tensor.to("cpu", copy=True)
            raw = copy.contiguous().view(-1).view(torch.uint8).numpy()
            bucket[name] = (raw, str(copy.dtype).removeprefix("torch."), tuple(copy.shape))
            size += raw.nbytes
            if size >= BUCKET_BYTES:
                refs.append(ray.put(bucket))
                bucket, size = {}, 0
        if bucket:
            refs.append(ray.put(bucket))
        return refs


class Receiver(base.Receiver):
    """Reads buckets: from the object store, or, where vLLM's worker is not itself a Ray process, from a file."""

    def pieces(self, update: WeightUpdate, in_process: bool) -> Iterator[Any]:
        """Lists holding one ref each (a bare ref would be resolved on the way), or paths in shared memory."""
        for ref in update.pieces:
            if in_process:
                yield [ref]
                continue
            with NamedTemporaryFile(dir=_shared_memory(), suffix=".castor-weights") as file:
                pickle.dump(ray.get(ref, timeout=READ_TIMEOUT_S), file, protocol=5)
                file.flush()
                yield file.name

    def receive(self, piece: Any, load: Callable[[Tensors], None]) -> None:
        """Load one bucket."""
        if isinstance(piece, str):
            with open(piece, "rb") as file:
                load(read_bucket(pickle.load(file)))
        else:
            load(read_bucket(ray.get(piece[0], timeout=READ_TIMEOUT_S)))


def read_bucket(bucket: Bucket) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a bucket, as views of its bytes, which are read-only when they come from the object store."""
    for name, (raw, dtype, shape) in bucket.items():
        yield name, torch.frombuffer(raw, dtype=getattr(torch, dtype)).view(shape)


def _shared_memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
