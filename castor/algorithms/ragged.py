"""Helpers for flat ragged tensors."""

import torch
from torch import Tensor


def last_token_index(lengths: Tensor) -> Tensor:
    """[N] int64 flat index of each sequence's last token. Every length is at least 1."""
    return torch.cumsum(lengths, 0) - 1


def sequence_sums(values: Tensor, lengths: Tensor) -> Tensor:
    """[N] sum of each sequence of flat values [R]."""
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), lengths)
    return values.new_zeros(len(lengths)).index_add(0, owner, values)


def to_padded(values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Flat [R] to right-padded [N, L] (zeros) and the mask [N, L] of real tokens."""
    mask = torch.arange(int(lengths.max()), device=values.device)[None] < lengths[:, None]
    padded = values.new_zeros(mask.shape)
    padded[mask] = values
    return padded, mask


def token_weights(
    lengths: Tensor, normalization: str, sequences: int, tokens: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """[R] weights w with loss = Σ_t w_t ℓ_t over all micro-batches and ranks of a mini-batch.

    `sequence`: mean over the tokens of a response, then over the `sequences` responses of the mini-batch (the reference
    implementation's masked mean). `token`: mean over its `tokens` response tokens. Both totals are global, so the loss
    does not depend on how the mini-batch is cut into micro-batches or dealt to ranks.
    """
    if normalization == "sequence":
        return torch.repeat_interleave(1.0 / (lengths.to(dtype) * sequences), lengths)
    if normalization == "token":
        return torch.full((int(lengths.sum()),), 1.0 / tokens, dtype=dtype, device=lengths.device)
    raise ValueError(f"unknown loss normalization {normalization!r}")
