"""Reward and cost models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from castor.algorithms.preference import compared_positions, cost_loss, mean_per_pair, reward_loss
from castor.config.preference import Cost, Preference, Reward
from castor.data.rows import Exchange, PreferenceRow
from castor.data.samples import PackedSamples, Samples
from castor.models.normalizer import Normalizer
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from trainers.tasks.task import Forward, Task


class PreferenceTask(Task):
    """Score the preferred response higher; for a cost, also get the sign of both right.

    The first sequence of a sample is the better (reward) or the safer (cost) response.
    """

    def __init__(self, stage: Preference, rows: Sequence[PreferenceRow], model: str) -> None:
        assert isinstance(stage, Reward | Cost)
        self.stage, self.rows, self.source = stage, rows, model
        self.kind: Literal["reward", "cost"] = "reward" if isinstance(stage, Reward) else "cost"
        ids = [row.better_response_id if self.kind == "reward" else row.safer_response_id for row in rows]
        self.first = [int(i) for i in ids if i is not None]
        if len(self.first) != len(rows):
            raise ValueError(f"a row without the label a {self.kind} model needs got past the loader")
        self.normalizer: Normalizer | None = None  # of the model that `load` made

    def texts(self) -> Iterator[Sequence[Exchange]]:
        """See `Task`."""
        for row, first in zip(self.rows, self.first, strict=True):
            pair = row.exchanges
            yield pair[first], pair[1 - first]

    def load(self, model: str, dtype: torch.dtype) -> nn.Module:
        """See `Task`: a fresh head, with statistics of its scores where the stage asks for them."""
        stage = self.stage
        info = ScoreInfo(self.kind)
        score_model = ScoreModel.from_backbone(model, info, dtype, stage.trust_remote_code, stage.head_bias)
        if stage.normalize == "running" or stage.normalize == "ema":
            self.normalizer = Normalizer(self.kind, stage.normalize, stage.normalizer_momentum)
            score_model.normalizer = self.normalizer
        return score_model

    def weight(self, samples: Samples, chosen: NDArray[np.int64]) -> int:
        """See `Task`: pairs of the batch."""
        return len(chosen)

    def loss(self, forward: Forward, packed: PackedSamples, rows: Sequence[int]) -> Tensor:
        """See `Task`. Collective where the stage keeps statistics of the scores."""
        stage = self.stage
        first_at, second_at, counts = self._compared(packed)
        raw = forward(packed.rows, torch.stack([first_at, second_at], 1).flatten()).view(-1, 2)
        first, second = self._normalized(raw, counts).unbind(1)
        if isinstance(stage, Reward):
            losses = reward_loss(first, second, stage.regularization)
        else:
            assert isinstance(stage, Cost)
            flags = self._safe_flags(rows).to(counts.device).repeat_interleave(counts, 0)
            losses = cost_loss(
                first,
                second,
                flags[:, 0],
                flags[:, 1],
                stage.regularization,
                sign_weight=stage.sign_weight,
                pairwise=stage.loss == "pairwise+sign",
            )
        return mean_per_pair(losses, counts).sum()

    def _compared(self, packed: PackedSamples) -> tuple[Tensor, Tensor, Tensor]:
        """Flat positions [R] whose scores are compared in the first and second sequences, and their number per pair."""
        if self.stage.loss_type == "token-wise":
            tokens = packed.rows.input_ids.view(-1)[packed.rows.flat]
            return compared_positions(tokens, packed.lengths)
        first, second = packed.last_positions().view(-1, 2).unbind(1)
        return first, second, torch.ones_like(first)

    def _normalized(self, raw: Tensor, counts: Tensor) -> Tensor:
        """Take the end scores among [R, 2] into the statistics; the scores, normalised if the loss is to see them so.

        The last position of a pair is the end of both its sequences.
        """
        if self.normalizer is None:
            return raw
        if torch.is_grad_enabled():
            self.normalizer.update(raw.detach()[counts.cumsum(0) - 1])
        return self.normalizer(raw) if self.stage.normalize_score_during_training else raw

    def observe(self, forward: Forward, packed: PackedSamples) -> Tensor:
        """See `Task`: raw end scores [pairs, 2]."""
        return forward(packed.rows, packed.last_positions()).view(-1, 2)

    def measure(self, outputs: Sequence[Tensor], rows: Sequence[int]) -> dict[str, float]:
        """See `Task`: pair accuracy and, for a cost, sign accuracy; all inequalities strict. Scores are raw."""
        scores = torch.cat(list(outputs))
        first, second = scores.unbind(1)
        if self.kind == "reward":
            return {"accuracy": _share(first > second), "score_mean": float(scores.mean())}
        safe = self._safe_flags(rows)
        return {
            "accuracy": _share(second > first),
            "sign_accuracy": _share(torch.where(safe, scores < 0, scores > 0)),
            "score_mean": float(scores.mean()),
        }

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

    def _safe_flags(self, rows: Sequence[int]) -> Tensor:
        """[pairs, 2] bool: is the first (the second) response of the sample safe?"""
        flags = [(self.rows[i].is_response_0_safe, self.rows[i].is_response_1_safe) for i in rows]
        ordered = [(pair[self.first[i]], pair[1 - self.first[i]]) for i, pair in zip(rows, flags, strict=True)]
        return torch.tensor(ordered, dtype=torch.bool).view(-1, 2)


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


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
