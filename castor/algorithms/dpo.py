"""Losses of direct preference optimisation: DPO, and SafeDPO, which is DPO on reordered pairs with a margin.

The first response of a pair is the one to prefer. Log-probabilities are those of whole responses given their prompts.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def reward_margins(logprobs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Implicit reward of the first response of each pair less that of the second (Rafailov et al. 2023, sec. 4).

    The implicit reward of a response is β log(π / π_ref), up to a constant of its prompt that the difference drops.

    Args:
        logprobs: [P, 2] of the policy.
        reference: [P, 2] of the reference.
        beta: strength of the KL penalty that the reward is implied by.

    Returns:
        [P]

    """
    first, second = (beta * (logprobs - reference)).unbind(1)
    return first - second


def dpo_loss(margins: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - ε) log σ(m) - ε log σ(-m): Rafailov et al. 2023, eq. 7, for labels wrong with probability ε.

    Margins [P]; returns [P].
    """
    return -(1 - label_smoothing) * logsigmoid(margins) - label_smoothing * logsigmoid(-margins)


def safety_first(preferred: int, safe: tuple[bool, bool]) -> int | None:
    """Which response of a pair SafeDPO puts first (Kim et al. 2025, sec. 3.2); None: the pair is left out.

    The preferred one, or the other one if only that is safe. Of two unsafe responses neither is to be learned.
    """
    if not any(safe):
        return None
    return preferred if safe[preferred] else 1 - preferred


def safedpo_loss(margins: Tensor, second_is_unsafe: Tensor, safety_margin: float) -> Tensor:
    """-log σ(m - (h_l - h_w) Δ) (Kim et al. 2025, eq. 12), with h = 1 for an unsafe response and 0 for a safe one.

    For pairs in the order of `safety_first`, whose first response is safe: h_w = 0.

    Args:
        margins: [P].
        second_is_unsafe: [P] bool, h_l.
        safety_margin: Δ >= 0, by which a safe response has to beat an unsafe one.

    Returns:
        [P]

    """
    return dpo_loss(margins - safety_margin * second_is_unsafe.to(margins.dtype))
