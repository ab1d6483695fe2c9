"""From scores to advantages: penalised streams, estimators with and without a critic, and their combination."""

from collections.abc import Mapping

import torch
from torch import Tensor

from castor.algorithms.ragged import last_token_index, sequence_sums, to_padded


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


def group_relative(returns: Tensor, groups: Tensor, *, divide_by_std: bool) -> Tensor:
    """A_i = (G_i - mean of its group) / (std of its group + 1e-6), [N] (GRPO, Shao et al. 2024, arXiv 2402.03300).

    Args:
        returns: [N] return of each response.
        groups: [N] int64 prompt of each response.
        divide_by_std: False leaves the deviation out (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783). It is the sample
            deviation (n - 1). A group of equal returns has advantage 0.

    Raises:
        ValueError: a response is alone in its group.

    """
    values = returns.double()
    index, counts = _group_index(groups)
    centered = values - _group_sums(values, index, counts)[index] / counts[index]
    if divide_by_std:
        variance = _group_sums(centered.square(), index, counts) / (counts - 1)
        centered = centered / (variance.sqrt()[index] + 1e-6)
    return centered.to(returns.dtype)


def leave_one_out(returns: Tensor, groups: Tensor) -> Tensor:
    """A_i = G_i - mean of the other returns of its group, [N] (RLOO, Ahmadian et al. 2024, arXiv 2402.14740).

    `returns` [N], `groups` [N] int64. Raises ValueError when a response is alone in its group.
    """
    values = returns.double()
    index, counts = _group_index(groups)
    others = (_group_sums(values, index, counts)[index] - values) / (counts[index] - 1)
    return (values - others).to(returns.dtype)


def return_to_go(stream: Tensor, lengths: Tensor, *, gamma: float) -> Tensor:
    """G_t = r_t + γ G_{t+1} over a flat stream [R]; returns [R]."""
    return gae(stream, torch.zeros_like(stream), lengths, gamma=gamma, gae_lambda=1.0)[0]


def whiten(advantages: Tensor) -> Tensor:
    """(A - mean) / (std + 1e-8) over all tokens [R] of a step, std the population's; REINFORCE++'s batch
    normalisation (Hu et al. 2025, arXiv 2501.03262).
    """
    values = advantages.double()
    return ((values - values.mean()) / (values.std(correction=0) + 1e-8)).to(advantages.dtype)


def critic_free(
    stream: Tensor, lengths: Tensor, groups: Tensor, *, estimator: str, gamma: float, group_std: bool
) -> Tensor:
    """Advantages [R] of one signal without a critic, from its penalised stream [R] and the prompts `groups` [N].

    The group estimators compare the sums of the stream, so a KL penalty in it counts per response, and give every
    token its response's advantage. `reinforce_pp` is the whitened return to go.
    """
    if estimator == "reinforce_pp":
        return whiten(return_to_go(stream, lengths, gamma=gamma))
    returns = sequence_sums(stream, lengths)
    if estimator == "group_relative":
        advantages = group_relative(returns, groups, divide_by_std=group_std)
    elif estimator == "leave_one_out":
        advantages = leave_one_out(returns, groups)
    else:
        raise ValueError(f"unknown estimator {estimator!r}")
    return torch.repeat_interleave(advantages, lengths)


def combine(
    objectives: Mapping[str, Tensor], weights: Mapping[str, float], constraints: Mapping[str, Tensor],
    multipliers: Mapping[str, float], *, objective_share: float = 1.0, plain: bool = False,
) -> Tensor:  # fmt: skip
    """A = (o Σ w_j A_rj - Σ λ_i A_ci) / (o + Σ λ_i), all [R] (Safe RLHF eq. 30 with the combination before the clip).

    `objective_share` o is 1, or 0 in CRPO's cost steps. `plain` leaves the division out (reward shaping R - Σ λ C).
    Raises KeyError when a constraint has no multiplier: an unpriced constraint is never silently ignored.
    """
    total = torch.stack([weights[name] * advantage for name, advantage in objectives.items()]).sum(0)
    total = objective_share * total
    for name, advantage in constraints.items():
        total = total - multipliers[name] * advantage
    return total if plain else total / (objective_share + sum(multipliers[name] for name in constraints))


def _group_index(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Which group [N] each response is of, counted from 0, and the sizes of the groups."""
    _, index, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    if int(counts.min()) < 2:
        raise ValueError("a response is alone in its group: a group estimator needs two samples of every prompt")
    return index, counts


def _group_sums(values: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    return values.new_zeros(len(counts)).index_add(0, index, values)
