"""vLLM's weight-transfer protocol over host memory.

vLLM's own backends (nccl, ipc, ...) need GPUs. This one is registered with the same factory as "host": it reads buckets
from the object store, or, where the vLLM worker is not itself a Ray process, from a file in shared memory. It is named
as `worker_extension_cls`, so that every vLLM worker process imports this module and the registration happens there.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import ray
import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from engines.weights import new_hasher, read_bucket

BACKEND = "host"


@dataclass
class HostInit(WeightTransferInitInfo):
    """Nothing to set up."""


@dataclass
class HostUpdate(WeightTransferUpdateInfo):
    """One bucket: a list holding its object ref (a bare ref would be resolved on the way), or a pickle's path."""

    bucket: list[Any] | None = None
    path: str | None = None


class HostWeightTransfer(WeightTransferEngine[HostInit, HostUpdate]):
    """Loads buckets of full, HF-named weights and keeps the digest of all bytes it loaded."""

    init_info_cls = HostInit
    update_info_cls = HostUpdate

    def init_transfer_engine(self, init_info: HostInit) -> None:
        """Nothing to connect to."""

    def start_weight_update(self) -> None:
        """Open the layer-wise reload: on a CPU the loaded layers are packed and cannot be written in place."""
        self.hasher = new_hasher()
        with torch.device(self.device):
            initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: HostUpdate) -> None:
        """Load one bucket."""
        with torch.device(self.device):
            cast(Any, self.model).load_weights(self._tensors(update_info))

    def _tensors(self, update: HostUpdate) -> Iterator[tuple[str, torch.Tensor]]:
        if update.bucket is not None:
            yield from read_bucket(ray.get(update.bucket[0], timeout=600), self.hasher)
        else:
            assert update.path is not None
            with open(update.path, "rb") as file:
                yield from read_bucket(pickle.load(file), self.hasher)

    def finish_weight_update(self) -> None:
        """Pack the layers again."""
        with torch.device(self.device):
            finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing to release."""


class WorkerExtension:
    """Mixed into every vLLM worker."""

    weight_transfer_engine: HostWeightTransfer

    def loaded_digest(self) -> str:
        """Digest of the bytes of the last finished update."""
        return self.weight_transfer_engine.hasher.hexdigest()


# an update over a base leaves layers out, which then keep their weights: vLLM would warn of each, every time
logging.getLogger(finalize_layerwise_reload.__module__).addFilter(
    lambda record: "Failed to load weights" not in str(record.msg)
)
if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, HostWeightTransfer)
