"""From scores to advantages: penalised streams, GAE, and their combination under multipliers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from castor.algorithms.ragged import last_token_index, to_padded


def penalized_stream(
    scores: Tensor, logprobs: Tensor, reference_logprobs: Tensor, lengths: Tensor, *, role: str, kl_coeff: float,
    clip_range_score: float,
) -> Tensor:  # fmt: skip
    """Per-token rewards or costs [R] of one signal (safe-rlhf PPO-Lag trainer; PKU-Alignment/safe-rlhf #172).

    k_t = log π(t) - log π_ref(t), unclipped. An objective's stream is -β k_t, a constraint's +β k_t, so that after
    A = (A_r - λ A_c) / (1 + λ) the effective KL strength is β whatever λ is. The score [N] is added at the last
    token; the clamp comes after the sum.
    """
    sign = {"objective": -1.0, "constraint": 1.0}[role]
    stream = sign * kl_coeff * (logprobs - reference_logprobs)
    stream = stream.index_add(0, last_token_index(lengths), scores.to(stream.dtype))
    return stream.clamp(-clip_range_score, clip_range_score)


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, *, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over flat rewards and values [R]; the value after the last token is 0.

    δ_t = r_t + γ V_{t+1} - V_t, A_t = δ_t + γ λ A_{t+1}; returns (A, A + V), both [R]. No whitening.
    """
    padded_rewards, mask = to_padded(rewards, lengths)
    padded_values, _ = to_padded(values, lengths)
    advantages = torch.zeros_like(padded_rewards)
    running = torch.zeros_like(padded_rewards[:, 0])
    next_values = torch.zeros_like(running)
    for t in reversed(range(padded_rewards.shape[1])):
        real = mask[:, t]
        delta = padded_rewards[:, t] + gamma * next_values - padded_values[:, t]
        running = torch.where(real, delta + gamma * gae_lambda * running, running)
        next_values = torch.where(real, padded_values[:, t], next_values)
        advantages[:, t] = running
    flat = advantages[mask]
    return flat, flat + values


def combine(
    objectives: Mapping[str, Tensor], weights: Mapping[str, float], constraints: Mapping[str, Tensor],
    multipliers: Mapping[str, float],
) -> Tensor:  # fmt: skip
    """A = (Σ w_j A_rj - Σ λ_i A_ci) / (1 + Σ λ_i), all [R] (Safe RLHF eq. 30 with the combination before the clip).

    Raises KeyError when a constraint has no multiplier: an unpriced constraint is never silently ignored.
    """
    total = torch.stack([weights[name] * advantage for name, advantage in objectives.items()]).sum(0)
    for name, advantage in constraints.items():
        total = total - multipliers[name] * advantage
    return total / (1.0 + sum(multipliers[name] for name in constraints))
