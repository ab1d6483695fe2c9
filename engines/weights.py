"""Weights on their way from the learner to the engines: versioned, in buckets, with a digest.

The learner puts each bucket into the object store once; every engine on a node reads it there without a copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from safetensors.torch import load_file
from torch import Tensor

from castor.model_reference import ModelLike, ModelReference

BUCKET_BYTES = 256 << 20

# name -> (raw bytes as uint8 [n], dtype name, shape): numpy has no bfloat16, and raw bytes travel without a copy
Bucket = dict[str, tuple[np.ndarray, str, tuple[int, ...]]]


@dataclass(frozen=True)
class WeightUpdate:
    """All weights of one policy version. `buckets` are refs to `Bucket`s; nothing here is large.

    With a `base` they are only what training changes: an engine loads the base once, and `digest` is that of both.
    """

    version: int
    digest: str
    buckets: list[Any]
    base: WeightUpdate | None = None


def publish(
    named_tensors: Iterable[tuple[str, Tensor]], version: int, keep: bool, base: WeightUpdate | None = None
) -> WeightUpdate | None:
    """Put full CPU tensors into the object store, bucket by bucket; `base` holds the rest of the weights, if any.

    All ranks of an SPMD group iterate (gathering shards is a collective); only the one with `keep` puts and returns.
    """
    hasher = new_hasher()
    buckets: list[Any] = []
    current: Bucket = {}
    size = 0
    for name, tensor in named_tensors:
        if not keep:
            continue
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        current[name] = (raw, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        _add(hasher, name, *current[name])
        size += raw.nbytes
        if size >= BUCKET_BYTES:
            buckets.append(ray.put(current))
            current, size = {}, 0
    if current:
        buckets.append(ray.put(current))
    digest = joined_digest(base.digest if base else None, hasher.hexdigest())
    return WeightUpdate(version, digest, buckets, base) if keep else None


def read_bucket(bucket: Bucket, hasher: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one bucket as read-only views, adding every byte to `hasher`, a `new_hasher()`."""
    for name, (raw, dtype, shape) in bucket.items():
        _add(hasher, name, raw, dtype, shape)
        # the view is read-only shared memory; vLLM only copies out of it
        yield name, torch.frombuffer(raw, dtype=getattr(torch, dtype)).view(shape)


class HeldWeights:
    """What an engine has been given: it loads the base of an update only when it does not hold that very base yet."""

    def __init__(self, load: Callable[[WeightUpdate], str]) -> None:
        """`load` puts an update's own buckets into the engine and returns the digest of the bytes it loaded."""
        self.load = load
        self.base: str | None = None  # digest of the base's bytes, while only updates over it have come after

    def take(self, update: WeightUpdate, version: int) -> str:
        """Bring the engine from `version` to `update`; the returned digest is the update's if everything arrived."""
        held, self.base = self.base, None  # whatever fails below, the next update loads its base again
        if update.base is not None and held != update.base.digest:
            held = self.load(replace(update.base, version=version))
        digest = self.load(update)
        self.base = held if update.base is not None else None
        return joined_digest(self.base, digest)


@ray.remote(num_cpus=0)
class FolderWeights:
    """Publishes the weights of models in folders. The published buckets live as long as this actor."""

    def publish(self, model: ModelLike, version: int) -> WeightUpdate | None:
        """The model's safetensors as `version`. Raises FileNotFoundError when there are none."""
        files = sorted(ModelReference.of(model).local().glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{model} holds no *.safetensors file")
        return publish((pair for file in files for pair in load_file(file).items()), version, keep=True)


def new_hasher() -> Any:
    """Hasher over all buckets of an update; `joined_digest` makes `WeightUpdate.digest` of its hexdigest."""
    return hashlib.blake2b(digest_size=16)


def joined_digest(base: str | None, buckets: str) -> str:
    """Digest of an update: of its buckets alone, or of the base that was loaded before and of its buckets."""
    if base is None:
        return buckets
    hasher = new_hasher()
    hasher.update(f"{base} {buckets}".encode())
    return str(hasher.hexdigest())


def _add(hasher: Any, name: str, raw: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
    hasher.update(f"{name} {dtype} {shape} ".encode())
    hasher.update(raw)
