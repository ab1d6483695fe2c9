"""Running statistics of raw end scores while a preference model is trained, and the normaliser they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Mean and standard deviation of the raw end scores of all ranks, `running` or as an exponential average (`ema`).

    `running`: over every score seen so far, however the batches were cut. `ema`: mean and variance move by
    1 - momentum towards those of each batch, from 0 and 1 (safe-rlhf models/normalizer.py). A reward is normalised as
    (x - mean) / std, a cost as x / std: its zero is the safety boundary and never moves. In both, std is taken around
    the mean, as in the reference; for a cost it is a scale, not a distance from the boundary.

    The statistics are buffers, so that they are part of every checkpoint of the model.
    """

    mean: Tensor  # [] float64
    var: Tensor  # [] float64
    count: Tensor  # [] int64

    def __init__(self, score_type: Literal["reward", "cost"], kind: Literal["running", "ema"], momentum: float) -> None:
        super().__init__()
        self.score_type, self.kind, self.momentum = score_type, kind, momentum
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("var", torch.ones((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, scores: Tensor) -> None:
        """Take in a batch of raw end scores [n], n >= 0 and different on every rank. Collective."""
        scores = scores.flatten().double()
        count, total = _sum_over_ranks(torch.stack([scores.new_tensor(len(scores)), scores.sum()])).unbind()
        if count == 0 or not total.isfinite():  # a loss that is not finite is the engine's to refuse
            return
        mean = total / count
        spread = _sum_over_ranks((scores - mean).square().sum())  # around the mean of all ranks
        if self.kind == "ema":
            self.mean.lerp_(mean, 1 - self.momentum)
            if count > 1:  # one score has no spread
                self.var.lerp_(spread / (count - 1), 1 - self.momentum)
        else:
            before = (self.count - 1).clamp(min=0) * self.var  # sum of squares around the mean so far
            moved = (mean - self.mean).square() * self.count * count / (self.count + count)
            self.mean += (mean - self.mean) * count / (self.count + count)
            if self.count + count > 1:
                self.var.copy_((before + spread + moved) / (self.count + count - 1))
        self.count += count.long()

    def forward(self, raw: Tensor) -> Tensor:
        """Raw scores of any shape, normalised; the statistics take no gradient."""
        shift, scale = self.constants()
        return (raw - shift) / scale

    def constants(self) -> tuple[float, float]:
        """(mean, std) that a score is normalised with; the mean of a cost is 0."""
        return 0.0 if self.score_type == "cost" else float(self.mean), float(self.var.sqrt())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move with the model, but stay float64 when it is cast: bfloat16 cannot count."""
        device = fn(self.mean).device
        for name, buffer in self.named_buffers(recurse=False):
            setattr(self, name, buffer.to(device))
        return self


def _sum_over_ranks(values: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
