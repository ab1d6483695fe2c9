"""Low-rank adapters (Hu et al. 2021) inside any model: added, switched off, merged, saved in peft's format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from castor.config.training import LoRA
from castor.io.checkpoint import atomic_folder
from castor.io.errors import CastorError
from castor.model_reference import ModelLike, ModelReference
from castor.models.backbone import load_config

ADAPTER = "default"
WEIGHTS_FILE = "adapter_model.safetensors"
INNER = ("lm", "backbone")  # what a policy, and a score or moderation model, call the Hugging Face model inside


def inner_model(model: nn.Module) -> tuple[str, Any]:
    """Name and module of the Hugging Face model inside a policy, a score model or a moderation model."""
    name = next(name for name in INNER if hasattr(model, name))
    return name, getattr(model, name)


def add_adapters(model: nn.Module, config: LoRA) -> None:
    """Put adapters into the model's language model, in place, and freeze its own weights. Heads stay trainable.

    A fresh adapter changes nothing: B is zero. Raises CastorError when `target_modules` names no linear layer, or one
    that shares its weights.
    """
    _, inner = inner_model(model)
    try:
        inject_adapter_in_model(_peft_config(config), inner, ADAPTER)
    except ValueError as error:
        raise CastorError(f"lora.target_modules: {_names(inner)} ({str(error).splitlines()[0]})") from error
    if not all(layer.lora_A for layer in _layers(model).values()):
        raise CastorError(f"lora.target_modules: only linear layers can have an adapter; {_names(inner)}")
    once = {name for name, _ in model.named_parameters()}
    for name in _layers(model):
        if f"{name}.base_layer.weight" not in once:  # tied: what is merged into it would move the other layer too
            raise CastorError(
                f"lora.target_modules: {name.rpartition('.')[2]} shares its weights with another layer of this model "
                "and cannot have an adapter: leave it out"
            )


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """While the body runs, the model computes as before `add_adapters`: the reference of the policy it has become."""
    layers = _layers(model).values()
    try:
        for layer in layers:  # not enable_adapters(): it would also switch requires_grad, which DeepSpeed relies on
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@torch.no_grad()
def merge(
    model: nn.Module, tensors: Iterable[tuple[str, Tensor]], factors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Full weights by their names without adapters, one at a time: W + alpha / rank · B A in place of W.

    Args:
        model: with adapters (only its structure is looked at: under ZeRO-3 its own weights may be shards).
        tensors: full weights by parameter name; the adapters' own are left out of the result.
        factors: the adapters' weights by parameter name, on the device of `tensors`.

    The sum is taken in float32; each tensor keeps its type.
    """
    layers = _layers(model)
    for name, tensor in tensors:
        if is_factor(name):
            continue
        owner, inside, leaf = name.rpartition(".base_layer.")
        if inside and leaf == "weight":
            layer = layers[owner]
            b, a = (factors[f"{owner}.lora_{which}.{ADAPTER}.weight"].float() for which in "BA")
            left, right = (a.T, b.T) if layer.fan_in_fan_out else (b, a)
            whole = tensor.to(torch.float32, copy=True).addmm_(left, right, alpha=layer.scaling[ADAPTER])
            tensor = whole.to(tensor.dtype)
        yield base_name(name), tensor


def is_factor(name: str) -> bool:
    """Is the parameter of this name an adapter's A or B?"""
    return ".lora_" in name


def adapter_weights(model: nn.Module, factors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """A and B by parameter name as they travel: of the layer NAME, `NAME.lora_A.weight`, and B times alpha / rank.

    So their product is all that is to be added to the layer's weight.
    """
    layers, prefix = _layers(model), f"{inner_model(model)[0]}."
    for name, factor in factors:
        owner, _, which = name.removesuffix(f".{ADAPTER}.weight").rpartition(".")
        scale = layers[owner].scaling[ADAPTER] if which == "lora_B" else 1.0
        yield f"{owner.removeprefix(prefix)}.{which}.weight", factor * scale


def base_name(name: str) -> str:
    """What the parameter of this name, which is no factor, was called before there were adapters."""
    return name.replace(".base_layer.", ".")


def with_modules(config: LoRA, model: ModelLike) -> LoRA:
    """The same adapters, with the names of the layers that null stands for."""
    if config.target_modules is not None:
        return config
    trusted = ModelReference.of(model).trust_remote_code
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(load_config(model), trust_remote_code=trusted)
    return config.model_copy(update={"target_modules": _linear(lm, lm.get_output_embeddings())})


def adapter_folder(policy: Path) -> Path:
    """Where the adapter of a model that was trained with one is kept: beside the merged model."""
    return policy.with_name(f"{policy.name}.adapter")


def save_adapter(folder: Path, model: nn.Module, weights: Mapping[str, Tensor], config: LoRA, base: ModelLike) -> None:
    """Write the adapter as peft reads it (`PeftModel.from_pretrained`), whole or not at all. `base`: what it is for."""
    prefix, _ = inner_model(model)
    adapter = {
        f"base_model.model.{name.removeprefix(prefix + '.').replace(f'.{ADAPTER}.', '.')}": tensor.contiguous()
        for name, tensor in weights.items()
        if is_factor(name)
    }
    with atomic_folder(folder) as aside:
        save_file(adapter, aside / WEIGHTS_FILE, metadata={"format": "pt"})
        modules = sorted({name.rpartition(".")[2] for name in _layers(model)})
        settings = _peft_config(config, ModelReference.of(base), modules)
        settings.save_pretrained(str(aside))


def _peft_config(config: LoRA, base: ModelReference | None = None, modules: list[str] | None = None) -> LoraConfig:
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # annotated as int, used as a factor
        lora_dropout=config.dropout,
        target_modules=modules or config.target_modules or "all-linear",
        base_model_name_or_path=None if base is None else base.name,
        revision=None if base is None else base.revision,
    )


def _layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _linear(inner: nn.Module, head: nn.Module | None = None) -> list[str]:
    """Names of the linear layers but the head."""
    linear = [
        name for name, each in inner.named_modules() if isinstance(each, (nn.Linear, Conv1D)) and each is not head
    ]
    return sorted({name.rpartition(".")[2] for name in linear})


def _names(inner: nn.Module) -> str:
    return f"the linear layers of this model are {', '.join(_linear(inner)) or 'none'}"
