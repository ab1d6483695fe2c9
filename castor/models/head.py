"""The linear heads of score and moderation models: computed in float32, and kept in a file beside the backbone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from castor.data.tokens.template import load_tokenizer
from castor.io.checkpoint import atomic_folder
from castor.io.errors import CastorError
from castor.io.files import write_json
from castor.model_reference import ModelLike

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

BACKBONE = "backbone."  # what the parameters of a backbone are called inside a model with heads


class Float32Parameters(nn.Module):
    """Mixed into a layer whose parameters are float32 beside a backbone of any type.

    bfloat16 keeps 8 bits of a number: scores of different responses would become equal, and a small step would change
    nothing. An engine for bfloat16 casts every parameter and trains a float32 copy of it; it puts these copies into
    `exact`, and the layer then computes with them and sends the gradient to the parameters.
    """

    exact: dict[str, Tensor]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.exact = {}  # float32 values of parameters of this layer, by name

    def float32(self, name: str) -> Tensor:
        """The parameter of this name in float32, with its gradient."""
        parameter: Tensor = getattr(self, name)
        if name not in self.exact:
            return parameter.float()
        return self.exact[name] + (parameter - parameter.detach()).float()  # the copy's value, and a gradient


class Float32Linear(Float32Parameters, nn.Linear):
    """A linear layer whose weights are float32, and whose product is taken in float32 whatever its input is."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias, dtype=torch.float32)

    def forward(self, input: Tensor) -> Tensor:
        """[..., out] float32 of [..., in]."""
        return linear(input.float(), self.float32("weight"), None if self.bias is None else self.float32("bias"))


def save_with_head(
    folder: Path,
    backbone: PreTrainedModel,
    weights: dict[str, Tensor],
    head: dict[str, Tensor],
    info: DataclassInstance,
    names: tuple[str, str],
    tokenizer_from: ModelLike,
) -> None:
    """Write a model with heads as a backbone folder with two more files, whole or not at all.

    Code that the backbone or the tokenizer ships goes along.

    Args:
        folder: written aside and renamed.
        backbone: only its class and config are used; under ZeRO-3 its own weights may be shards.
        weights: full weights by the names of the whole model; those of the backbone are taken.
        head: the heads' weights by their names in the file, written as float32.
        info: what the outputs mean, written as JSON.
        names: of the file of the head, and of that of `info`.
        tokenizer_from: the model whose tokenizer is copied.

    """
    head_file, info_file = names
    own = {name.removeprefix(BACKBONE): tensor for name, tensor in weights.items() if name.startswith(BACKBONE)}
    with atomic_folder(folder) as aside:
        backbone.save_pretrained(aside, state_dict=own)
        save_file({name: tensor.float().contiguous() for name, tensor in head.items()}, aside / head_file)
        write_json(aside / info_file, asdict(info))
        load_tokenizer(tokenizer_from).save_pretrained(aside)


def check_head(model: Any, found: dict[str, Tensor], wanted: dict[str, tuple[int, ...]], what: str) -> None:
    """Raise CastorError unless the weights of a head are those wanted, in these shapes. `what`: whose head it is."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != wanted:
        name = min(name for name in shapes | wanted if shapes.get(name) != wanted.get(name))
        raise CastorError(
            f"{model} does not fit together: its head is not that of {what}: {name} is "
            f"{shapes.get(name, 'missing')}, not {wanted.get(name, 'wanted')}; train it again, or give a whole model"
        )
