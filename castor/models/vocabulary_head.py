"""The layer of a language model that makes logits of hidden states, and other work in its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from castor.models.called_instead import called_instead

Projection: TypeAlias = Callable[[Tensor], Tensor]  # hidden states [..., H] to logits [..., V]


@contextmanager
def instead_of_logits(
    head: nn.Module, compute: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
) -> Iterator[None]:
    """While the body runs, a call of `head` gives `compute(project, hidden)`, and `project` is what it gave before.

    However often `compute` projects, the head is called once, equally often on every rank.
    """
    project = head.forward
    with called_instead(head, lambda hidden: compute(project, hidden)):
        yield


@torch.no_grad()
def gives_head_output(lm: PreTrainedModel) -> bool:
    """Are the model's logits what its output layer gives for the columns that are kept, and nothing done to it?

    Most models' are. Some scale or cap them afterwards (Cohere, Granite, Gemma 2). Found out by trying: numbers far
    from zero are put in the place of the layer's output, and must come out of the model as they are.
    """
    head = lm.get_output_embeddings()
    if not isinstance(head, nn.Module):
        return False
    size = int(lm.config.get_text_config().vocab_size)
    rows, columns = torch.arange(6, device=lm.device).view(2, 3) % size, torch.tensor([0, 2], device=lm.device)
    planted: list[Tensor] = []

    def plant(_: Projection, hidden: Tensor) -> Tensor:
        shape = (*hidden.shape[:-1], size)
        values = torch.arange(math.prod(shape), device=hidden.device) % 211 - 105  # exact in any type
        planted.append(values.view(shape).to(hidden.dtype))
        return planted[-1]

    training = lm.training
    lm.eval()
    with instead_of_logits(head, plant):
        logits = lm(input_ids=rows, use_cache=False, logits_to_keep=columns).logits
    lm.train(training)
    kept = (len(rows), len(columns), size)
    return [tuple(each.shape) for each in planted] == [kept] and torch.equal(logits.float(), planted[0].float())
