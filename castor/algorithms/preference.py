"""Losses of the preference models (Safe RLHF eqs. 5 and 6, BeaverTails eqs. 1 and 2).

They are element-wise: sequence-wise losses take the end scores of pairs [P]; token-wise losses take the scores at all
compared positions [R] (`compared_positions`) and are averaged over each pair's positions with `mean_per_pair`.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def reward_loss(better: Tensor, worse: Tensor, regularization: float) -> Tensor:
    """Bradley-Terry: -log σ(R_w - R_l), plus `regularization` times the mean squared score. Scores [P]; returns [P]."""
    return -logsigmoid(better - worse) + regularization * _mean_square(better, worse)


def cost_loss(
    safer: Tensor, unsafer: Tensor, safer_is_safe: Tensor, unsafer_is_safe: Tensor, regularization: float,
    *, sign_weight: float = 1.0,
) -> Tensor:  # fmt: skip
    """-log σ(C_u - C_s) - w [log σ(s_u C_u) + log σ(s_s C_s)], with s = +1 for unsafe and -1 for safe responses.

    The two sign terms compare each response with a virtual one of zero cost, which is what makes zero the safety
    boundary; `sign_weight` w is 1 in paper and reference. Scores and flags [P]; returns [P].
    """
    signs = sign_loss(safer, safer_is_safe) + sign_loss(unsafer, unsafer_is_safe)
    return sign_weight * signs - logsigmoid(unsafer - safer) + regularization * _mean_square(safer, unsafer)


def safety_loss(cost: Tensor, is_safe: Tensor, regularization: float, sign_weight: float = 1.0) -> Tensor:
    """What `cost_loss` keeps of one response without the comparison (PKU-SafeRLHF sec. 4.2 as printed).

    -w log σ(s C) plus half of `regularization` times C²; summed over the two responses of a pair it is `cost_loss`
    less the pairwise term. Costs and flags [n]; returns [n].
    """
    return sign_weight * sign_loss(cost, is_safe) + 0.5 * regularization * cost.square()


def sign_loss(cost: Tensor, is_safe: Tensor) -> Tensor:
    """-log σ(s C), with s = +1 for unsafe and -1 for safe responses. Any one shape."""
    return -logsigmoid(torch.where(is_safe, -cost, cost))


def compared_positions(tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the token-wise loss compares the two sequences of each pair.

    From the first token that differs to the end of the longer sequence (safe-rlhf values/reward/trainer.py). Past the
    end of the shorter one, its last token is compared again: the reference reads the scores of padding tokens there,
    and a packed batch has none. A pair whose tokens are all equal is compared at its end only.

    Args:
        tokens: [T] int64, the flat sequences, two of a pair after each other.
        lengths: [2 P] int64.

    Returns:
        flat positions [R] in the first and in the second sequences, and the number of positions of each pair [P].

    """
    ends = torch.cumsum(lengths, 0)
    starts = ends - lengths
    first, second, counts = [], [], []
    for pair in range(len(lengths) // 2):
        (a, b), (m, n) = starts[2 * pair : 2 * pair + 2].tolist(), lengths[2 * pair : 2 * pair + 2].tolist()
        both = min(m, n)
        differs = (tokens[a : a + both] != tokens[b : b + both]).nonzero()
        begin = int(differs[0]) if len(differs) else min(both, max(m, n) - 1)
        offsets = torch.arange(begin, max(m, n), device=tokens.device)
        first.append(a + offsets.clamp(max=m - 1))
        second.append(b + offsets.clamp(max=n - 1))
        counts.append(len(offsets))
    nothing = lengths.new_empty(0)
    return torch.cat([nothing, *first]), torch.cat([nothing, *second]), lengths.new_tensor(counts)


def mean_per_pair(values: Tensor, counts: Tensor) -> Tensor:
    """Means of consecutive groups of values [R] of the given sizes [P], each at least 1; returns [P]."""
    pair = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return values.new_zeros(len(counts)).index_add(0, pair, values) / counts


def _mean_square(first: Tensor, second: Tensor) -> Tensor:
    return 0.5 * (first.square() + second.square())
