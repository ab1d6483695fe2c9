"""A cost model from safety labels alone: the classification-only loss of PKU-SafeRLHF sec. 4.2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from castor.algorithms.preference import safety_loss
from castor.config.preference import Cost
from castor.data.rows.schemas import Exchange, QARow
from castor.data.tokens.samples import PackedSamples
from castor.model_reference import ModelLike
from trainers.supervised.tasks.scores import ScoreTask, share
from trainers.supervised.tasks.task import Forward


class SafetyTask(ScoreTask):
    """Get the sign of the score right: positive for unsafe responses, negative for safe ones. No pairs are needed."""

    def __init__(self, stage: Cost, rows: Sequence[QARow], model: ModelLike) -> None:
        super().__init__(stage, model)
        self.rows, self.sign_weight = rows, stage.sign_weight
        self.safe = np.fromiter((_required(row.is_safe) for row in rows), dtype=np.bool_, count=len(rows))

    def texts(self) -> Iterator[Sequence[Exchange]]:
        """See `Task`."""
        return ([row.exchange] for row in self.rows)

    def loss(self, forward: Forward, packed: PackedSamples, rows: Sequence[int]) -> Tensor:
        """See `Task`. Collective where the stage keeps statistics of the scores."""
        raw = self.observe(forward, packed)
        scores = self.normalized(raw, torch.arange(len(raw), device=raw.device))
        return safety_loss(scores, self._flags(rows).to(raw.device), self.stage.regularization, self.sign_weight).sum()

    def observe(self, forward: Forward, packed: PackedSamples) -> Tensor:
        """See `Task`: raw end scores [responses]."""
        return forward(packed.rows, packed.last_positions())

    def measure(self, outputs: Sequence[Tensor], rows: Sequence[int]) -> dict[str, float]:
        """See `Task`: loss, and sign accuracy, of strict inequalities. Scores are raw."""
        scores, safe = torch.cat(list(outputs)).float(), self._flags(rows)
        return {
            "validation_loss": float(safety_loss(scores, safe, self.stage.regularization, self.sign_weight).mean()),
            "sign_accuracy": share(torch.where(safe, scores < 0, scores > 0)),
            "score_mean": float(scores.mean()),
        }

    def _flags(self, rows: Sequence[int]) -> Tensor:
        """[responses] bool: is it safe?"""
        return torch.from_numpy(self.safe[np.asarray(rows, dtype=np.int64)])


def _required(flag: bool | None) -> bool:
    if flag is None:
        raise ValueError("a row without is_safe got past the loader")
    return flag
