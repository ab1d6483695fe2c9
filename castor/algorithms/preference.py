"""Losses of the preference models on end scores (Safe RLHF eqs. 5 and 6, BeaverTails eqs. 1 and 2)."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def reward_loss(better: Tensor, worse: Tensor, regularization: float) -> Tensor:
    """Bradley-Terry: -log σ(R_w - R_l), plus `regularization` times the mean squared score. Scores [P]; returns [P]."""
    return -logsigmoid(better - worse) + regularization * _mean_square(better, worse)


def cost_loss(
    safer: Tensor, unsafer: Tensor, safer_is_safe: Tensor, unsafer_is_safe: Tensor, regularization: float,
    *, pairwise: bool = True,
) -> Tensor:  # fmt: skip
    """-log σ(C_u - C_s) - log σ(s_u C_u) - log σ(s_s C_s), with s = +1 for unsafe and -1 for safe responses.

    The two sign terms compare each response with a virtual one of zero cost, which is what makes zero the safety
    boundary. `pairwise=False` keeps only them (PKU-SafeRLHF sec. 4.2 as printed). Scores and flags [P]; returns [P].
    """
    sign_safer = torch.where(safer_is_safe, -1.0, 1.0)
    sign_unsafer = torch.where(unsafer_is_safe, -1.0, 1.0)
    loss = -logsigmoid(sign_safer * safer) - logsigmoid(sign_unsafer * unsafer)
    if pairwise:
        loss = loss - logsigmoid(unsafer - safer)
    return loss + regularization * _mean_square(safer, unsafer)


def _mean_square(first: Tensor, second: Tensor) -> Tensor:
    return 0.5 * (first.square() + second.square())
