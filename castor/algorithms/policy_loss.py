"""The policy's loss over the micro-batches of one update, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from castor.algorithms.kl import k3
from castor.algorithms.losses import clipped_policy_loss
from castor.algorithms.off_policy import importance_ratio, truncated_importance_weights
from castor.algorithms.ragged import token_weights
from castor.algorithms.ratio import is_bounded
from castor.config.learner import Learner

IMPORTANCE = ("importance_mean", "importance_truncated_share")  # sums of the ratio before truncation


class PolicyLoss:
    """Of a rank's share of one mini-batch: the clipped surrogate, a KL penalty and an entropy bonus where they are on.

    `sums` over response tokens are to be added over all ranks, of `maxima` the largest is to be taken; every rank has
    the same names, whether it has any micro-batch or none. loss, kl_loss and entropy are weighted as in the loss;
    clipped, bounded, logprob, gap, fresh and those of `IMPORTANCE` are plain sums.
    """

    def __init__(
        self, learner: Learner, *, kl_coeff: float, own_old: bool, fresh: bool, sequences: int, tokens: int
    ) -> None:
        """`own_old`: the old log-probabilities are the learner's, not the sampler's; `fresh`: some tokens were sampled
        by older weights, and count for no gap. `sequences` and `tokens` are those of the mini-batch on all ranks.
        """
        self.learner, self.kl_coeff, self.own_old = learner, kl_coeff, own_old
        self.sequences, self.tokens = sequences, tokens
        self.with_entropy = learner.entropy_coeff > 0
        terms = {"kl_loss": kl_coeff > 0, "entropy": self.with_entropy, "fresh": fresh}
        names = ["loss", "clipped", "bounded", "logprob", "gap", *(name for name, is_on in terms.items() if is_on)]
        self.sums = dict.fromkeys([*names, *(IMPORTANCE if own_old else ())], 0.0)
        self.maxima = dict.fromkeys(("gap_max", "importance_max") if own_old else ("gap_max",), 0.0)

    def add(self, output: Tensor, lengths: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        """The loss of one micro-batch, scalar, to be differentiated.

        Args:
            output: [R] float32 log-probabilities of the response tokens; with entropy [2, R], its second row.
            lengths: [N] int64 tokens of each response.
            columns: [R] float32 each: logprobs (the sampler's), advantages, and where they are needed reference,
                proximal (old log-probabilities; without them the forward pass at hand gives them) and fresh (1 or 0).

        """
        logprobs = output[0] if self.with_entropy else output
        weights = token_weights(lengths, self.learner.loss_normalization, self.sequences, self.tokens)
        sampled = columns["logprobs"]
        old = columns.get("proximal", logprobs.detach()) if self.own_old else sampled
        low, high = self.learner.clip_range
        surrogate = clipped_policy_loss(
            logprobs, old, columns["advantages"], low, high, dual_clip=self.learner.dual_clip
        )
        if self.own_old:
            cap = self.learner.importance_cap
            surrogate = surrogate * truncated_importance_weights(importance_ratio(old, sampled), cap)
        loss = total = (weights * surrogate).sum()
        if "kl_loss" in self.sums:
            kl_loss = (weights * k3(logprobs, columns["reference"])).sum()
            total = total + self.kl_coeff * kl_loss
            self.sums["kl_loss"] += float(kl_loss.detach())
        if self.with_entropy:
            entropy = (weights * output[1]).sum()
            total = total - self.learner.entropy_coeff * entropy
            self.sums["entropy"] += float(entropy.detach())
        self.sums["loss"] += float(loss.detach())
        self._tally(logprobs.detach(), old, columns)
        return total

    def _tally(self, logprobs: Tensor, old: Tensor, columns: Mapping[str, Tensor]) -> None:
        sums, maxima, sampled = self.sums, self.maxima, columns["logprobs"]
        gap = (logprobs - sampled).abs()
        bounded = is_bounded(logprobs - old)
        if "kl_loss" in sums:
            bounded |= is_bounded(columns["reference"] - logprobs)
        if "fresh" in sums:
            gap = gap * columns["fresh"]
            sums["fresh"] += float(columns["fresh"].sum())
        if self.own_old:
            bounded |= is_bounded(old - sampled)
            ratio = importance_ratio(old, sampled)
            sums["importance_mean"] += float(ratio.sum())
            sums["importance_truncated_share"] += float((ratio > self.learner.importance_cap).sum())
            maxima["importance_max"] = max(maxima["importance_max"], float(ratio.max()))
        low, high = self.learner.clip_range
        moved = torch.exp(logprobs - old) - 1.0
        sums["clipped"] += float(((moved > high) | (-moved > low)).sum())
        sums["bounded"] += float(bounded.sum())
        sums["logprob"] += float(logprobs.sum())
        sums["gap"] += float(gap.sum())
        maxima["gap_max"] = max(maxima["gap_max"], float(gap.max()))
