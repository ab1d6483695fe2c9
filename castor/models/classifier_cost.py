"""The cost of the papers' ablation: a moderation model's probabilities instead of a cost model's score."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from castor.algorithms.moderation import CUTS
from castor.config.judge import Classifier
from castor.io.errors import CastorError
from castor.models.moderation import ModerationInfo, ModerationModel
from castor.models.score import ScoreInfo
from castor.packing import PackedRows
from castor.taxonomy import nearest_category

_EDGE = 1e-6


class ClassifierCost(nn.Module):
    """A cost from a moderation model (PPOL-classifier-max and -mean, BeaverTails table 2).

    The papers take the probability itself. Here the threshold that the model's validation rows gave that probability is
    taken off it, so that zero is the safety boundary as for every other cost; nothing else is shifted or scaled. With
    `margin: logit` the difference is one of log-odds.
    """

    def __init__(self, model: ModerationModel, classifier: Classifier, name: str = "the moderation model") -> None:
        """Raises CastorError when the model cannot give this cost; `name` is what the message calls it."""
        super().__init__()
        check_classifier(model.info, classifier, name)
        self.model, self.classifier, self.info = model, classifier, ScoreInfo("cost")

    def forward(self, rows: PackedRows, positions: Tensor) -> Tensor:
        """[n] float32 costs at the given flat token positions [n] int64; a cost above zero means unsafe."""
        info, reduce = self.model.info, self.classifier.reduce
        outputs = torch.sigmoid(self.model(rows, positions))
        labels, cumulative = outputs.split([len(info.categories), outputs.shape[1] - len(info.categories)], 1)
        if isinstance(reduce, str):
            if reduce == "max":
                return self._margin(labels.amax(1), info.thresholds.max)
            if reduce == "mean":
                return self._margin(labels.mean(1), info.thresholds.mean)
            assert info.thresholds.expected_severity is not None
            return self._margin(cumulative.sum(1), info.thresholds.expected_severity, CUTS)
        each = [
            self._margin(labels[:, number], info.thresholds.labels[number])
            for number in map(info.categories.index, reduce)
        ]
        return torch.stack(each).amax(0)

    def _margin(self, value: Tensor, threshold: float, largest: float = 1.0) -> Tensor:
        if self.classifier.margin == "probability":
            return value - threshold
        boundary = torch.full_like(value, threshold)
        return torch.logit(value / largest, eps=_EDGE) - torch.logit(boundary / largest, eps=_EDGE)


def check_classifier(info: ModerationInfo, classifier: Classifier, name: str) -> None:
    """Raise CastorError when a moderation model cannot give this cost."""
    if info.input != "pair":
        raise CastorError(f"{name} sees the {info.input} only: a cost needs a moderation model with input: pair")
    if classifier.reduce == "expected_severity" and not info.severity:
        raise CastorError(f"{name} has no severity head, so no expected severity: train one with severity: true")
    missing = [] if isinstance(classifier.reduce, str) else sorted(set(classifier.reduce) - set(info.categories))
    if missing:
        near = nearest_category(missing[0], info.categories)
        raise CastorError(
            f"{name} has the taxonomy {info.taxonomy}, which has no category {missing[0]!r}; the nearest one is "
            f"{near!r}"
        )
