"""Linear heads in float32: those of score and moderation models, kept in a file beside the backbone, and logits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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


class Float32Product(nn.Linear):
    """A linear layer with weights of any type, whose product is summed up and handed on in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., out] float32 of [..., in] in the weights' type."""
        product = cast(Tensor, _Product.apply(input, self.weight))
        return product if self.bias is None else product + self.bias.float()


class _Product(torch.autograd.Function):
    """x Wᵀ in float32. The gradient of it is rounded to the weights' type, as that of any layer beside it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        if input.is_cuda and weight.dtype != torch.float32:  # no float32 copy of the vocabulary's weights
            rows = torch.mm(input.flatten(0, -2), weight.t(), out_dtype=torch.float32)
            return rows.view(*input.shape[:-1], -1)
        return linear(input.float(), weight.float())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        gradient = gradients[0].to(weight.dtype)
        to_input = gradient @ weight if ctx.needs_input_grad[0] else None
        to_weight = gradient.flatten(0, -2).t() @ input.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return to_input, to_weight


def compute_logits_in_float32(lm: PreTrainedModel) -> None:
    """Let the head of a language model hand on float32 logits, in place; its weights, tied or not, stay what they are.

    vLLM does the same where it is told `head_dtype: float32`. Raises CastorError for a head that is not linear.
    """
    head = lm.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise CastorError(
            f"{lm.name_or_path}: the head is a {type(head).__name__}, and only a linear one can compute logits in "
            "float32: set rollout.head_dtype to model"
        )
    product = Float32Product(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    product.weight, product.bias = head.weight, head.bias
    lm.set_output_embeddings(product.train(head.training))


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
