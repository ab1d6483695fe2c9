"""Policy, value and language-model losses per token. Weights come from `ragged.token_weights`."""

import torch
from torch import Tensor

from castor.algorithms.ratio import bounded_exp


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float | None = None,
    *, dual_clip: float | None = None,
) -> Tensor:  # fmt: skip
    """PPO's clipped surrogate per token: max(-A ρ, -A clip(ρ, 1 - ε_low, 1 + ε_high)) with ρ = π / π_old. All [R].

    `clip_high` None is ε_low; another one is the asymmetric clip of DAPO (arXiv 2503.14476). `dual_clip` c bounds the
    loss of negative advantages by c |A|, so a token that became far more likely no longer dominates (Ye et al. 2020,
    arXiv 1912.09729, eq. 5). ρ is `bounded_exp` of the log-ratio: loss and gradient are finite.
    """
    ratio = bounded_exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + (clip_low if clip_high is None else clip_high))
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range_value: float) -> Tensor:
    """0.5 max((V - G)², (clip(V, V_old ± ε) - G)²) per token. All [R]."""
    clipped = torch.maximum(torch.minimum(values, old_values + clip_range_value), old_values - clip_range_value)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
