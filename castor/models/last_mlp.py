"""The MLP of a model's last layer, computed for the tokens that are read and no others.

No layer after it mixes tokens, so what it gives elsewhere is thrown away. In a step of RLHF three tokens in four are of
prompts, and a score is read at one token of a sequence: of a model of four layers this spares an eighth of the
arithmetic, of one of 32 a fiftieth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from castor.models.backbone import Packing, decoder_layers, model_inputs
from castor.models.called_instead import called_instead
from castor.packing import PackedRows

TOLERANCE = 1e-3  # of the largest hidden value; a token that had to be computed, and was not, is off by far more


@contextmanager
def computed_at(backbone: Any, tokens: Tensor, spares: bool) -> Iterator[None]:
    """While the body runs, the MLP of the last layer computes the tokens at these flat positions [K], and gives zeros
    for all others, if the backbone `spares` them (`spares_tokens`).

    Nothing is spared where no token is read, so that every parameter gets its gradient, nor with gradient
    checkpointing, which calls the layer once more when the body has ended.
    """
    mlp = _last_mlp(backbone) if spares else None
    if mlp is None or len(tokens) == 0 or (backbone.training and backbone.is_gradient_checkpointing):
        yield
        return
    compute, tokens = mlp.forward, tokens.unique()

    def only(hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, 1)
        made: Tensor = compute(rows[tokens][None])[0]
        return made.new_zeros(rows.shape).index_copy(0, tokens, made).view(hidden.shape)

    with called_instead(mlp, only):
        yield


@torch.no_grad()
def spares_tokens(backbone: Any, packing: Packing) -> bool:
    """Whether the hidden states of tokens that are read stay the same when no others go through the last layer's MLP.

    Found out by trying; a model whose last layer has no part of that name is not asked.
    """
    mlp = _last_mlp(backbone)
    if mlp is None:
        return False
    device, size = backbone.device, int(backbone.config.get_text_config().vocab_size)
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]], device=device)
    ids = torch.arange(positions.numel(), device=device).view(positions.shape) % size
    rows, inputs = model_inputs(PackedRows(ids, positions, torch.arange(ids.numel(), device=device)), packing)
    read = rows.flat[torch.tensor([2, 4, 7, 9], device=device)]
    fits: list[bool] = []  # for each call: hidden states [B, L, H] alone go in, and as many come out
    looking = mlp.register_forward_hook(lambda _, *call: fits.append(_fits(*call)), with_kwargs=True)
    training = backbone.training
    backbone.eval()
    try:
        before = backbone(**inputs).last_hidden_state.flatten(0, 1)[read].float()
        if fits != [True]:
            return False
        with computed_at(backbone, read, spares=True):
            after = backbone(**inputs).last_hidden_state.flatten(0, 1)[read].float()
    finally:
        looking.remove()
        backbone.train(training)
    return bool((after - before).abs().max() <= TOLERANCE * before.abs().max())


def _fits(given: tuple[Any, ...], named: dict[str, Any], made: Any) -> bool:
    hidden = given[0] if len(given) == 1 and not named else None
    return isinstance(hidden, Tensor) and hidden.dim() == 3 and isinstance(made, Tensor) and made.shape == hidden.shape


def _last_mlp(backbone: PreTrainedModel) -> nn.Module | None:
    found = decoder_layers(backbone)
    mlp = None if found is None else getattr(found[1][-1], "mlp", None)
    return mlp if isinstance(mlp, nn.Module) else None
