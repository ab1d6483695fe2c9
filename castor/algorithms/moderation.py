"""Losses of moderation models: weighted multi-label cross-entropy, the any-label term, ordinal severity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from castor.taxonomy import Severity

CUTS = len(Severity) - 1
"""Steps of the severity ladder: cumulative logit k is that of P(severity > k), k = 0, 1, 2."""
UNKNOWN = -1
"""The severity of a row that has no usable severity label."""
_TINY = 1e-30


@dataclass(frozen=True)
class Targets:
    """What is known of n rows. A safe row is in no category and has severity 0, whether or not it says so."""

    labels: Tensor  # [n, K] bool: in the category; all false where `labelled` is
    labelled: Tensor  # [n] bool: the categories are known
    unsafe: Tensor  # [n] bool
    severity: Tensor  # [n] int64: 0 to 3, or UNKNOWN

    def __getitem__(self, rows: Tensor) -> Targets:
        """The targets of the given rows [m] int64."""
        return Targets(self.labels[rows], self.labelled[rows], self.unsafe[rows], self.severity[rows])

    def to(self, device: torch.device) -> Targets:
        """A copy on `device`."""
        parts = (self.labels, self.labelled, self.unsafe, self.severity)
        return Targets(*(part.to(device) for part in parts))


def moderation_loss(
    logits: Tensor, targets: Targets, label_weights: Tensor, unsafe_weight: float, severity_weight: float
) -> Tensor:
    """Loss of each row, [n]: its labels, or else its unsafe flag, plus `severity_weight` times its severity.

    A row of known categories has `label_loss`, an unsafe row of unknown ones `unsafe_weight` times `any_label_loss`.

    Args:
        logits: [n, K] label logits, or [n, K + 3] with the cumulative severity logits behind them.
        targets: of the n rows.
        label_weights: [K] weights of positive labels, see `class_weights`.
        unsafe_weight: see above.
        severity_weight: see above.

    """
    count = targets.labels.shape[1]
    labels, cumulative = logits[:, :count], logits[:, count:]
    known = label_loss(labels, targets.labels, label_weights)
    loss = torch.where(targets.labelled, known, unsafe_weight * any_label_loss(labels))
    if cumulative.shape[1]:
        loss = loss + severity_weight * severity_loss(cumulative, targets.severity, targets.unsafe)
    return loss


def label_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """[n] mean over labels of -(w y log p + (1 - y) log(1 - p)), p = σ(logit); logits, labels [n, K], weights [K]."""
    per_label = binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), pos_weight=weights.to(logits), reduction="none"
    )
    return per_label.mean(1)


def any_label_loss(logits: Tensor) -> Tensor:
    """[n] -log(1 - Π(1 - p_k)) of label logits [n, K]: at least one label fires, were labels independent (noisy-or)."""
    log_none = logsigmoid(-logits).sum(1).clamp(max=-_TINY)
    return -torch.log(-torch.expm1(log_none))


def severity_loss(cumulative: Tensor, severity: Tensor, unsafe: Tensor) -> Tensor:
    """[n] cross-entropy of the events severity > k, mean over k = 0, 1, 2.

    A safe row answers all three with no. An unsafe row without a severity (UNKNOWN) only says that severity > 0; the
    two events it is silent about contribute nothing.

    Args:
        cumulative: [n, 3] logits of P(severity > k).
        severity: [n] int64.
        unsafe: [n] bool.

    """
    cuts = torch.arange(CUTS, device=cumulative.device)
    level = torch.where(severity == UNKNOWN, unsafe.to(severity.dtype), severity)[:, None]
    silent = ((severity == UNKNOWN) & unsafe)[:, None] & (cuts > 0)
    exceeded = (level > cuts).to(cumulative.dtype)
    per_cut = binary_cross_entropy_with_logits(cumulative, exceeded, reduction="none")
    return per_cut.masked_fill(silent, 0.0).sum(1) / CUTS


def class_weights(
    labels: NDArray[np.bool_], rule: Literal["sqrt", "balanced", "none"], limit: float
) -> NDArray[np.float64]:
    """[K] weights of positive labels against class imbalance, from labels [n, K].

    `balanced` is negatives / positives, `sqrt` its square root, both cut to [1 / limit, limit]; `none` is 1, and so is
    the weight of a label that no row has.
    """
    positives = labels.sum(0).astype(np.float64)
    if rule == "none":
        return np.ones_like(positives)
    seen = positives > 0
    ratio = np.divide(len(labels) - positives, positives, out=np.ones_like(positives), where=seen)
    weights = np.sqrt(ratio) if rule == "sqrt" else ratio
    return np.where(seen, np.clip(weights, 1 / limit, limit), 1.0)
