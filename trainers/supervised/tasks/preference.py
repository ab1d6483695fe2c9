"""Reward and cost models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from castor.algorithms.preference import compared_positions, cost_loss, mean_per_pair, reward_loss
from castor.config.preference import Cost, Preference, Reward
from castor.data.rows.schemas import Exchange, PreferenceRow
from castor.data.tokens.samples import PackedSamples
from castor.model_reference import ModelLike
from trainers.supervised.tasks.scores import ScoreTask, share
from trainers.supervised.tasks.task import Forward


class PreferenceTask(ScoreTask):
    """Score the preferred response higher; for a cost, also get the sign of both right.

    The first sequence of a sample is the better (reward) or the safer (cost) response.
    """

    def __init__(self, stage: Preference, rows: Sequence[PreferenceRow], model: ModelLike) -> None:
        super().__init__(stage, model)
        self.rows = rows
        self.first = np.empty(len(rows), dtype=np.int8)  # which response is preferred
        self.safe = np.zeros((len(rows), 2), dtype=np.bool_)  # for a cost: whether the preferred, the other one is safe
        for number, row in enumerate(rows):  # once: they may come from a disk
            self._learn(number, row)

    def texts(self) -> Iterator[Sequence[Exchange]]:
        """See `Task`."""
        for row, first in zip(self.rows, self.first, strict=True):
            pair = row.exchanges
            yield pair[first], pair[1 - first]

    def _learn(self, number: int, row: PreferenceRow) -> None:
        """Note the labels of a row."""
        flags = (row.is_response_0_safe, row.is_response_1_safe) if self.kind == "cost" else ()
        chosen = row.better_response_id if self.kind == "reward" else row.safer_response_id
        if chosen is None or None in flags:
            raise ValueError(f"a row without the label a {self.kind} model needs got past the loader")
        self.first[number] = chosen
        if flags:
            self.safe[number] = flags[chosen], flags[1 - chosen]

    def loss(self, forward: Forward, packed: PackedSamples, rows: Sequence[int]) -> Tensor:
        """See `Task`. Collective where the stage keeps statistics of the scores."""
        stage = self.stage
        first_at, second_at, counts = self._compared(packed)
        raw = forward(packed.rows, torch.stack([first_at, second_at], 1).flatten()).view(-1, 2)
        ends = counts.cumsum(0) - 1  # the last position of a pair is the end of both its sequences
        first, second = self.normalized(raw, ends).unbind(1)
        if isinstance(stage, Reward):
            losses = reward_loss(first, second, stage.regularization)
        else:
            assert isinstance(stage, Cost)
            flags = self._safe_flags(rows).to(counts.device).repeat_interleave(counts, 0)
            first_safe, second_safe = flags.unbind(1)
            losses = cost_loss(
                first, second, first_safe, second_safe, stage.regularization, sign_weight=stage.sign_weight
            )
        return mean_per_pair(losses, counts).sum()

    def _compared(self, packed: PackedSamples) -> tuple[Tensor, Tensor, Tensor]:
        """Flat positions [R] whose scores are compared in the first and second sequences, and their number per pair."""
        if self.stage.loss_type == "token-wise":
            tokens = packed.rows.input_ids.view(-1)[packed.rows.flat]
            return compared_positions(tokens, packed.lengths)
        first, second = packed.last_positions().view(-1, 2).unbind(1)
        return first, second, torch.ones_like(first)

    def observe(self, forward: Forward, packed: PackedSamples) -> Tensor:
        """See `Task`: raw end scores [pairs, 2]."""
        return forward(packed.rows, packed.last_positions()).view(-1, 2)

    def measure(self, outputs: Sequence[Tensor], rows: Sequence[int]) -> dict[str, float]:
        """See `Task`: loss of the end scores, pair accuracy and, for a cost, sign accuracy; all inequalities strict.

        Scores are raw.
        """
        scores, stage = torch.cat(list(outputs)).float(), self.stage
        first, second = scores.unbind(1)
        if isinstance(stage, Reward):
            losses = reward_loss(first, second, stage.regularization)
            accuracy = share(first > second)
            return {"validation_loss": float(losses.mean()), "accuracy": accuracy, "score_mean": float(scores.mean())}
        assert isinstance(stage, Cost)
        safe = self._safe_flags(rows)
        first_safe, second_safe = safe.unbind(1)
        losses = cost_loss(first, second, first_safe, second_safe, stage.regularization, sign_weight=stage.sign_weight)
        return {
            "validation_loss": float(losses.mean()),
            "accuracy": share(second > first),
            "sign_accuracy": share(torch.where(safe, scores < 0, scores > 0)),
            "score_mean": float(scores.mean()),
        }

    def _safe_flags(self, rows: Sequence[int]) -> Tensor:
        """[pairs, 2] bool: is the first (the second) response of the sample safe?"""
        return torch.from_numpy(self.safe[np.asarray(rows, dtype=np.int64)])
