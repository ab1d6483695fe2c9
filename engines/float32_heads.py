"""Heads that stay float32 in a DeepSpeed engine for bfloat16, which casts every parameter of its model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from castor.models.head import Float32Parameters
from engines import deepspeed_state


class Float32Heads:
    """Lends the layers of a model that are `Float32Parameters` the float32 weights that the engine trains.

    DeepSpeed 0.19.8 has no option for it: `data_types.keep_in_fp32_modules` keeps buffers only, and the flat groups of
    ZeRO 1 to 3 are of one type. The weights of a head are few, so every rank holds them whole, at every stage.
    """

    def __init__(self, model: nn.Module, cast: bool) -> None:
        """`model` is on its device, and not yet in the engine; one that does not `cast` it leaves nothing to do."""
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Float32Parameters)}
        self.layers = layers if cast else {}
        self.start = {key: parameter.detach().float().clone() for key, _, parameter in self._parameters()}

    def restore(self, engine: Any) -> None:
        """Undo the cast: the engine trains on from the float32 weights the heads came with. Collective."""
        for key, layer, parameter in self._parameters():
            if parameter.requires_grad:
                deepspeed_state.set_weight(engine, parameter, self.start[key])
            else:
                layer.exact[_leaf(key)] = self.start[key]
        self.start = {}
        self.refresh(engine)

    def refresh(self, engine: Any) -> None:
        """The heads compute with what the engine holds now. Collective."""
        for key, layer, parameter in self._parameters():
            if parameter.requires_grad:
                layer.exact[_leaf(key)] = deepspeed_state.get_weight(engine, parameter).clone()

    def tensors(self) -> dict[str, Tensor]:
        """The heads' float32 weights, by the model's parameter names."""
        return {key: layer.exact[_leaf(key)] for key, layer, _ in self._parameters()}

    def _parameters(self) -> list[tuple[str, Float32Parameters, nn.Parameter]]:
        return [
            (f"{name}.{leaf}" if name else leaf, layer, parameter)
            for name, layer in self.layers.items()
            for leaf, parameter in layer.named_parameters(recurse=False)
        ]


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]
