"""Policy, value and language-model losses per token. Weights come from `ragged.token_weights`."""

import torch
from torch import Tensor


def clipped_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range_ratio: float) -> Tensor:
    """PPO's clipped surrogate per token: max(-A ρ, -A clip(ρ, 1 - ε, 1 + ε)) with ρ = π / π_old. All [R]."""
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1.0 - clip_range_ratio, 1.0 + clip_range_ratio)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range_value: float) -> Tensor:
    """0.5 max((V - G)², (clip(V, V_old ± ε) - G)²) per token. All [R]."""
    clipped = torch.maximum(torch.minimum(values, old_values + clip_range_value), old_values - clip_range_value)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
