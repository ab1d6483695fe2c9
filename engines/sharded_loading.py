"""Models that no rank ever holds whole: loaded as shards under ZeRO-3, and run on them before there is an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from castor.config.training import Engine


@contextmanager
def loading_for(config: Engine, engine_config: dict[str, Any]) -> Iterator[None]:
    """Under ZeRO-3, what `from_pretrained` loads while the body runs is shards of this rank. Collective.

    A layer is made, shared out among the ranks and dropped before the next one is made; then rank 0 reads one layer
    after the other from its file, and the others get their shards of it. Models can be run while the body lasts, too:
    see `whole_layers`. At other stages nothing changes.

    Args:
        config: of the engine that will train the model.
        engine_config: DeepSpeed's.

    """
    if config.zero_stage < 3:
        yield
        return
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    init = deepspeed.zero.Init
    # a buffer keeps the type it was made in: frequencies of rotary embeddings in bfloat16 would move every position
    deepspeed.zero.Init = partial(init, tensor_overrides=[deepspeed.zero.DeepSpeedTensorOverride.device])
    kept = HfDeepSpeedConfig(engine_config)  # transformers knows it as long as it lives
    try:
        with whole_layers():
            yield
    finally:
        unset_hf_deepspeed_config()
        deepspeed.zero.Init = init
        del kept


@contextmanager
def whole_layers() -> Iterator[None]:
    """While the body runs, a forward pass on shards finds each layer whole, one after the other. Collective.

    A layer is a module without a list of modules in it, such as a decoder layer, an embedding or a norm.
    """
    import deepspeed

    gathered: dict[int, Any] = {}

    def gather(module: nn.Module, _: Any) -> None:
        whole = not any(isinstance(part, nn.ModuleList) for part in module.modules())
        shards = [parameter for parameter in module.parameters(recurse=whole) if is_shard(parameter)]
        if shards:
            gathered[id(module)] = deepspeed.zero.GatheredParameters(shards)
            gathered[id(module)].__enter__()

    def release(module: nn.Module, *_: Any) -> None:
        if id(module) in gathered:
            gathered.pop(id(module)).__exit__(None, None, None)

    hooks = [register_module_forward_pre_hook(gather), register_module_forward_hook(release, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def is_shard(parameter: Any) -> bool:
    """Is a parameter ZeRO-3's, and its values shared out among the ranks at this moment?"""
    return hasattr(parameter, "ds_id") and parameter.ds_status.name == "NOT_AVAILABLE"


def shape(parameter: Tensor) -> tuple[int, ...]:
    """Of the whole parameter, of which this rank may hold a shard."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
