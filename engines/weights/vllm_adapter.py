"""An adapter that training moves, in vLLM's one slot for it: what comes in an update takes the place of the one before.

vLLM reads an adapter from a folder when a request names one that it does not hold. This one is never read: something is
in the slot before the first request, under the number that every request names.
"""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor
from vllm.config.lora import MaxLoRARanks
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest

from castor.config.training import LoRA

NUMBER = 1
REQUEST = LoRARequest("policy", NUMBER, "(never read: its weights come from the learner)")


def adapter_arguments(lora: LoRA) -> dict[str, Any]:
    """Engine arguments for an adapter on the layers that `lora.target_modules` names."""
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": min(rank for rank in get_args(MaxLoRARanks) if rank >= lora.rank),
        "lora_target_modules": [name.rpartition(".")[2] for name in lora.target_modules or ()],
    }


def empty(manager: Any) -> None:
    """Until the first update: an adapter of zeros. `manager` is the model runner's."""
    manager.add_dummy_lora(REQUEST, rank=1)


def put(manager: Any, factors: dict[str, Tensor]) -> None:
    """Make `factors` the adapter: A and B of layers by name, `LAYER.lora_A.weight`, to be added as B · A.

    Raises RuntimeError, and changes nothing, when a layer of vLLM's model takes none.
    """
    slots = manager._adapter_manager
    rank = next(tensor.shape[0] for name, tensor in factors.items() if name.endswith(".lora_A.weight"))
    adapter = LoRAModel.from_lora_tensors(
        NUMBER,
        {f"base_model.model.{name}": tensor for name, tensor in factors.items()},
        PEFTHelper(r=rank, lora_alpha=rank, target_modules=[]),  # no factor of its own: B brings it
        device="cpu",  # as vLLM keeps those it reads; the slot on the GPU is filled from there
        dtype=manager.lora_config.lora_dtype,
        weights_mapper=_renaming(slots.model),
    )
    known = {*slots.modules, *(part for parts in slots.packed_modules.values() for part in parts)}
    if missing := sorted(adapter.loras.keys() - known):  # by vLLM's names
        raise RuntimeError(f"vLLM's model has no layer that takes an adapter at {missing[0]} ({len(missing)} missing)")
    slots.remove_adapter(NUMBER)
    slots.add_adapter(adapter)
    slots.activate_adapter(NUMBER)


def _renaming(model: Any) -> Any:
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return mapper.get_rename_mapper() if mapper is not None else None
