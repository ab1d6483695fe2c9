"""Moderation models: harm categories, unsafe decision, severity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, confusion_matrix, f1_score
from torch import Tensor, nn

from castor.algorithms.moderation import CUTS, UNKNOWN, Targets, class_weights, moderation_loss
from castor.algorithms.thresholds import Decision, Floats, decide, fit_temperature, fit_thresholds
from castor.config.moderation import Moderation
from castor.data.rows.harm_labels import moderation_targets
from castor.data.rows.schemas import Exchange, QARow
from castor.data.tokens.samples import PackedSamples, Samples
from castor.io.errors import CastorError
from castor.model_reference import ModelLike, ModelReference
from castor.models.moderation import ModerationInfo, ModerationModel, save_moderation_model
from castor.models.start import start_moderation_model
from castor.scoring.moderator import check_outputs, part_to_judge, split_outputs
from trainers.supervised.tasks.task import Forward, Task


class ModerationTask(Task):
    """Say of a question with its answer which harm categories it is in and, with a severity head, how severe it is."""

    def __init__(
        self, stage: Moderation, rows: Sequence[QARow], model: ModelLike, training: NDArray[np.int64] | None = None
    ) -> None:
        """The weights against class imbalance are those of the rows `training` (None: all), which alone are learned.

        Raises CastorError when the rows cannot teach this: see `moderation_targets`.
        """
        self.stage, self.rows, self.source = stage, rows, ModelReference.of(model)
        self.info = ModerationInfo.fresh(stage.taxonomy, stage.input, stage.severity)
        self.targets = moderation_targets(rows, self.info.categories, stage.map_taxonomy, stage.severity)
        learned = self.targets if training is None else self.targets[torch.tensor(training)]
        labels = learned.labels[learned.labelled].numpy()
        self.label_weights = torch.from_numpy(class_weights(labels, stage.class_weights, stage.max_class_weight))
        self._validation: list[int] = []  # rows of the newest measurement: `save` is told their outputs only

    def texts(self) -> Iterable[Sequence[Exchange]]:
        """See `Task`."""
        return ([part_to_judge(self.stage.input, row.exchange)] for row in self.rows)

    def load(self, dtype: torch.dtype) -> nn.Module:
        """See `Task`, and `start_moderation_model`."""
        return start_moderation_model(self.source, self.info, dtype)

    def weight(self, samples: Samples, chosen: NDArray[np.int64]) -> int:
        """See `Task`: rows of the batch."""
        return len(chosen)

    def loss(self, forward: Forward, packed: PackedSamples, rows: Sequence[int]) -> Tensor:
        """See `Task`."""
        logits, stage = self.observe(forward, packed), self.stage
        targets = self.targets[torch.tensor(rows, dtype=torch.int64)].to(logits.device)
        return moderation_loss(logits, targets, self.label_weights, stage.unsafe_weight, stage.severity_weight).sum()

    def observe(self, forward: Forward, packed: PackedSamples) -> Tensor:
        """See `Task`: logits [rows, K], or [rows, K + 3] with a severity head."""
        return forward(packed.rows, packed.last_positions())

    def measure(self, outputs: Sequence[Tensor], rows: Sequence[int]) -> dict[str, float]:
        """See `Task`: the loss, and `moderation_metrics` with thresholds that never saw the row they decide on.

        The validation prompts are dealt to two halves; each half is decided with the thresholds of the other one.
        """
        self._validation = list(rows)
        targets, logits = self.targets[torch.tensor(self._validation)], _together(outputs)
        check_outputs(logits, self.info)
        if targets.unsafe.all() or not targets.unsafe.any():
            raise CastorError(
                f"the {len(rows)} validation rows to choose thresholds on are all "
                f"{'un' if targets.unsafe.any() else ''}safe: raise validation_share, or give rows of both kinds"
            )
        keys = [self.rows[i].key for i in rows]
        prompts = {key: number for number, key in enumerate(sorted(set(keys)))}
        half = np.array([prompts[key] % 2 for key in keys])
        pieces = []
        for side in (0, 1):
            here, there = np.flatnonzero(half == side), np.flatnonzero(half != side)
            info = self._fitted(logits[there], targets[torch.from_numpy(there)])
            probabilities, cumulative = split_outputs(logits[here], info)
            pieces.append((here, decide(probabilities, cumulative, info.thresholds)))
        raw, stage = torch.cat(list(outputs)).float(), self.stage
        losses = moderation_loss(raw, targets, self.label_weights, stage.unsafe_weight, stage.severity_weight)
        return {"validation_loss": float(losses.mean()), **moderation_metrics(pieces, targets)}

    def save(self, folder: Path, model: nn.Module, weights: dict[str, Tensor], outputs: Sequence[Tensor]) -> None:
        """See `Task`: a moderation model with the thresholds and temperatures of all validation rows."""
        assert isinstance(model, ModerationModel)
        targets = self.targets[torch.tensor(self._validation)]
        info = self._fitted(_together(outputs), targets)
        save_moderation_model(folder, model.backbone, weights, info, self.source)

    def _fitted(self, outputs: Floats, targets: Targets) -> ModerationInfo:
        """The model's info with temperatures and thresholds chosen on raw outputs [n, K] or [n, K + 3]."""
        labels, labelled, unsafe = (part.numpy() for part in (targets.labels, targets.labelled, targets.unsafe))
        info, count, raised = self.info, labels.shape[1], targets.severity.numpy()
        if self.stage.calibrate and labels[labelled].any():
            info = replace(info, temperature=fit_temperature(outputs[labelled, :count], labels[labelled]))
        known = raised != UNKNOWN
        if self.stage.calibrate and info.severity and (raised > 0).any():
            steps = raised[known, None] > np.arange(CUTS)
            info = replace(info, severity_temperature=fit_temperature(outputs[known, count:], steps))
        scales = np.array([info.temperature] * count + [info.severity_temperature] * (outputs.shape[1] - count))
        probabilities, cumulative = split_outputs(outputs / scales, info)
        thresholds = fit_thresholds(
            probabilities, cumulative, labels, labelled, unsafe,
            objective=self.stage.unsafe_objective, floor=self.stage.threshold_floor,
        )  # fmt: skip
        return replace(info, thresholds=thresholds)


def moderation_metrics(pieces: Sequence[tuple[NDArray[np.int64], Decision]], targets: Targets) -> dict[str, float]:
    """Figures of decisions on validation rows; unsafe is the positive class.

    accuracy, f1, false_positive_rate of the unsafe decision; exact_match (the whole label vector right) and macro_f1
    (mean over the labels that occur) over rows of known categories; severity_accuracy and severity_kappa (quadratic
    weights) over rows of known severity, with a severity head. A figure that does not exist for these rows is absent.

    Args:
        pieces: rows [m] and the decisions on them; together they cover every row once.
        targets: of all rows.

    """
    order = np.argsort(np.concatenate([where for where, _ in pieces]))
    flagged = np.concatenate([decision.unsafe for _, decision in pieces])[order]
    labels = np.concatenate([decision.labels for _, decision in pieces])[order]
    unsafe, known = targets.unsafe.numpy(), targets.labelled.numpy()
    actual = targets.labels.numpy()[known]
    occurs = actual.any(0)
    (_, false_positives), _ = confusion_matrix(unsafe, flagged, labels=[False, True])
    metrics = {
        "accuracy": float((flagged == unsafe).mean()),
        "f1": float(f1_score(unsafe, flagged, zero_division=0.0)),
        "false_positive_rate": float(false_positives / (~unsafe).sum()),
        "exact_match": float((labels[known] == actual).all(1).mean()),
    }
    if occurs.any():
        scores = f1_score(actual[:, occurs], labels[known][:, occurs], average="macro", zero_division=0.0)
        metrics["macro_f1"] = float(scores)
    levels = [decision.severity for _, decision in pieces if decision.severity is not None]
    graded = targets.severity.numpy() != UNKNOWN
    if levels and graded.any():
        guess, truth = np.concatenate(levels)[order][graded], targets.severity.numpy()[graded]
        metrics["severity_accuracy"] = float((guess == truth).mean())
        if len({*guess.tolist(), *truth.tolist()}) > 1:
            metrics["severity_kappa"] = float(cohen_kappa_score(guess, truth, weights="quadratic", labels=range(4)))
    return metrics


def _together(outputs: Sequence[Tensor]) -> Floats:
    return torch.cat([output.double().cpu() for output in outputs]).numpy()
