"""What a model's last layer computes of each token by itself, for the tokens that are read and no others.

No layer after it mixes tokens, so what its MLP, its queries and the projection of what attention found give elsewhere
is thrown away. In a step of RLHF three tokens in four are of prompts, and a score is read at one token of a sequence:
of a model of four layers this spares a seventh of the arithmetic, of one of 32 a fiftieth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from castor.models.backbone import Packing, decoder_layers, model_inputs
from castor.models.called_instead import called_instead
from castor.packing import PackedRows

TOLERANCE = 1e-3  # of the largest hidden value; a token that had to be computed, and was not, is off by far more
PARTS = ("mlp", "self_attn.q_proj", "self_attn.o_proj")  # of a layer, as far as it has them


@contextmanager
def computed_at(backbone: Any, tokens: Tensor, spares: bool) -> Iterator[None]:
    """While the body runs, these parts of the last layer compute the tokens at these flat positions [K], and give zeros
    for all others, if the backbone `spares` them (`spares_tokens`).

    Nothing is spared where no token is read, so that every parameter gets its gradient, nor with gradient
    checkpointing, which calls the layer once more when the body has ended.
    """
    parts = _parts(backbone) if spares and len(tokens) else ()
    if not parts or (backbone.training and backbone.is_gradient_checkpointing):
        yield
        return
    tokens = tokens.unique()

    def only(compute: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, 1)
        made = compute(rows[tokens][None])[0]
        return made.new_zeros(len(rows), made.shape[-1]).index_copy(0, tokens, made).view(*hidden.shape[:2], -1)

    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(called_instead(part, partial(only, part.forward)))
        yield


@torch.no_grad()
def spares_tokens(backbone: Any, packing: Packing) -> bool:
    """Whether the hidden states of tokens that are read stay the same when no others go through these parts.

    Found out by trying; a model whose last layer has no MLP of that name is not asked.
    """
    parts = _parts(backbone)
    if not parts:
        return False
    device, size = backbone.device, int(backbone.config.get_text_config().vocab_size)
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]], device=device)
    ids = torch.arange(positions.numel(), device=device).view(positions.shape) % size
    rows, inputs = model_inputs(PackedRows(ids, positions, torch.arange(ids.numel(), device=device)), packing)
    read = rows.flat[torch.tensor([2, 4, 7, 9], device=device)]
    fits: list[bool] = []  # for each call: numbers [B, L, ...] of tokens alone go in, and as many come out
    looking = [
        part.register_forward_hook(lambda _, *call: fits.append(_fits(*call)), with_kwargs=True) for part in parts
    ]
    training = backbone.training
    backbone.eval()
    try:
        before = backbone(**inputs).last_hidden_state.flatten(0, 1)[read].float()
        if fits != [True] * len(parts):
            return False
        with computed_at(backbone, read, spares=True):
            after = backbone(**inputs).last_hidden_state.flatten(0, 1)[read].float()
    finally:
        for hook in looking:
            hook.remove()
        backbone.train(training)
    return bool((after - before).abs().max() <= TOLERANCE * before.abs().max())


def _fits(given: tuple[Any, ...], named: dict[str, Any], made: Any) -> bool:
    hidden = given[0] if len(given) == 1 and not named else None
    if not isinstance(hidden, Tensor) or not isinstance(made, Tensor):
        return False
    return hidden.dim() == made.dim() == 3 and made.shape[:2] == hidden.shape[:2]


def _parts(backbone: PreTrainedModel) -> Sequence[nn.Module]:
    """Those of the last layer; none where it has no MLP."""
    found = decoder_layers(backbone)
    named = {} if found is None else dict(found[1][-1].named_modules())
    return [named[name] for name in PARTS if name in named] if PARTS[0] in named else []
