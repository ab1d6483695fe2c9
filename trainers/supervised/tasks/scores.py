"""What the tasks of reward and cost models share: a score model, its normaliser, and how it is saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from castor.config.preference import Cost, Preference, Reward
from castor.data.tokens.samples import Samples
from castor.model_reference import ModelLike, ModelReference
from castor.models.normalizer import Normalizer
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from castor.models.start import start_score_model
from trainers.supervised.tasks.task import Task


class ScoreTask(Task):
    """The model's side of `Task` for a score model."""

    def __init__(self, stage: Preference, model: ModelLike) -> None:
        assert isinstance(stage, Reward | Cost)
        self.stage, self.source = stage, ModelReference.of(model)
        self.kind: Literal["reward", "cost"] = "reward" if isinstance(stage, Reward) else "cost"
        self.normalizer: Normalizer | None = None  # of the model that `load` made

    def load(self, dtype: torch.dtype) -> nn.Module:
        """See `Task`, and `start_score_model`; with statistics of its scores where the stage asks for them."""
        stage = self.stage
        score_model = start_score_model(self.source, self.kind, dtype, stage.head_bias)
        if stage.normalize == "running" or stage.normalize == "ema":
            self.normalizer = Normalizer(self.kind, stage.normalize, stage.normalizer_momentum)
            score_model.normalizer = self.normalizer
        return score_model

    def weight(self, samples: Samples, chosen: NDArray[np.int64]) -> int:
        """See `Task`: samples (pairs or responses) of the batch."""
        return len(chosen)

    def normalized(self, raw: Tensor, ends: Tensor) -> Tensor:
        """Take the end scores, `raw[ends]`, into the statistics; `raw` normalised, if the loss is to see it so."""
        if self.normalizer is None:
            return raw
        if torch.is_grad_enabled():
            self.normalizer.update(raw.detach()[ends])
        return self.normalizer(raw) if self.stage.normalize_score_during_training else raw

    def save(self, folder: Path, model: nn.Module, weights: dict[str, Tensor], outputs: Sequence[Tensor]) -> None:
        """See `Task`: a score model with its normaliser fixed."""
        assert isinstance(model, ScoreModel)
        raw = torch.cat(list(outputs)).flatten()
        info = model.info
        if self.normalizer is not None:
            mean, std = self.normalizer.constants()
            info = replace(info, mean=mean, std=std)
        save_score_model(
            folder, model.backbone, weights, calibrate(info, raw, self.stage.normalize == "held_out"), self.source
        )


def calibrate(info: ScoreInfo, scores: Tensor, normalize: bool) -> ScoreInfo:
    """With `normalize`, fix the normaliser on raw held-out scores [n]: affine for a reward, scale only for a cost.

    For a cost, also note the mean normalised score of the responses it calls safe (score <= 0) and unsafe, from which
    a limit on the unsafe share is turned into a threshold. A side without responses stays unknown.
    """
    if normalize:
        mean = float(scores.mean()) if info.score_type == "reward" else 0.0
        info = replace(info, mean=mean, std=float(scores.std()))
    if info.score_type == "reward":
        return info
    normal = scores / info.std
    safe, unsafe = normal[normal <= 0], normal[normal > 0]
    return replace(
        info,
        safe_mean=float(safe.mean()) if len(safe) else None,
        unsafe_mean=float(unsafe.mean()) if len(unsafe) else None,
    )


def share(hits: Tensor) -> float:
    """The share of true values."""
    return float(hits.double().mean())
