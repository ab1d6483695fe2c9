"""vLLM's side of a weight update, whatever the transport: layers are opened, loaded, digested and closed again.

One engine is registered with vLLM's weight-transfer factory, as "castor"; each piece it is given names its transport.
This module is named as `worker_extension_cls`, so that every vLLM worker process imports it and the registration
happens there.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from engines.weights.base import receiver_of
from engines.weights.digest import Digest, Tensors
from engines.weights.vllm_adapter import empty, put

BACKEND = "castor"


@dataclass
class Init(WeightTransferInitInfo):
    """Nothing to set up."""


@dataclass
class Update(WeightTransferUpdateInfo):
    """One piece of an update, for the receiver of its transport."""

    transport: str
    piece: Any


class ProvenTransfer(WeightTransferEngine[Init, Update]):
    """Loads full, HF-named weights and keeps the digest of all it loaded since the update was started."""

    init_info_cls = Init
    update_info_cls = Update
    open = False  # whether an update is under way

    def init_transfer_engine(self, init_info: Init) -> None:
        """Nothing to connect to."""

    def start_weight_update(self) -> None:
        """Open the layer-wise reload: on a CPU the loaded layers are packed and cannot be written in place."""
        self.digest = Digest()
        if self.open:  # an update broke off: what a layer has of it would count as part of this one
            self.finish_weight_update()
        with torch.device(self.device):
            initialize_layerwise_reload(self.model)
        self.open = True

    def receive_weights(self, update_info: Update) -> None:
        """Load one piece."""
        with torch.device(self.device):
            receiver_of(update_info.transport).receive(update_info.piece, self._load)

    def _load(self, tensors: Tensors) -> None:
        cast(Any, self.model).load_weights(self.digest.adding(tensors))

    def finish_weight_update(self) -> None:
        """Pack the layers again."""
        with torch.device(self.device):
            finalize_layerwise_reload(self.model, self.model_config)
        self.open = False

    def shutdown(self) -> None:
        """Nothing to release."""


class WorkerExtension:
    """Mixed into every vLLM worker. The update of an adapter goes past vLLM's: no layer of the model is opened."""

    weight_transfer_engine: ProvenTransfer
    model_runner: Any
    cache_config: Any
    available_kv_cache_memory_bytes: int
    factors: dict[str, Tensor]

    def watch(self) -> int:
        """This process prints its stacks at SIGUSR1 from now on; returns its number."""
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        return os.getpid()

    def cache_bytes(self) -> int:
        """Of this worker's key-value cache: as it was told, or as it has measured."""
        return self.cache_config.kv_cache_memory_bytes or self.available_kv_cache_memory_bytes

    def empty_adapter(self) -> None:
        """Sample from the model alone, until the first update."""
        empty(self.model_runner.lora_manager)

    def start_adapter_update(self) -> None:
        """Forget what there is of an update that broke off."""
        self.weight_transfer_engine.digest, self.factors = Digest(), {}

    def update_adapter(self, update_info: dict[str, Any]) -> None:
        """Receive one piece."""
        update = Update(**update_info)
        with torch.device(self.weight_transfer_engine.device):
            receiver_of(update.transport).receive(update.piece, self._keep)

    def _keep(self, tensors: Tensors) -> None:
        adding = self.weight_transfer_engine.digest.adding(tensors)
        self.factors.update((name, tensor.clone()) for name, tensor in adding)

    def finish_adapter_update(self) -> None:
        """Sample with it from now on."""
        put(self.model_runner.lora_manager, self.factors)
        self.factors = {}

    def loaded_digest(self) -> str:
        """Digest of what the last update loaded."""
        return self.weight_transfer_engine.digest.over(None)


# no update holds the buffers of rotary embeddings, which stay as they are: vLLM would warn of them, every time
logging.getLogger(finalize_layerwise_reload.__module__).addFilter(
    lambda record: "Failed to load weights" not in str(record.msg)
)
if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, ProvenTransfer)
