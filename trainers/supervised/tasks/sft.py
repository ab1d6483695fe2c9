"""Supervised fine-tuning: predict the demonstrated response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from castor.config.supervised import SFT
from castor.data.rows.schemas import Exchange, QARow
from castor.data.tokens.samples import PackedSamples, Samples
from castor.model_reference import ModelLike, ModelReference
from castor.models.policy import PolicyModel
from trainers.supervised.tasks.task import Forward, Task


class SFTTask(Task):
    """Predict the demonstrated response."""

    def __init__(self, stage: SFT, rows: Sequence[QARow], model: ModelLike) -> None:
        self.stage, self.rows, self.source = stage, rows, ModelReference.of(model)

    def texts(self) -> Iterator[Sequence[Exchange]]:
        """See `Task`."""
        return ([row.exchange] for row in self.rows)

    def load(self, dtype: torch.dtype) -> nn.Module:
        """See `Task`."""
        return PolicyModel.load(self.source, dtype, engine=self.stage.engine)

    def weight(self, samples: Samples, chosen: NDArray[np.int64]) -> int:
        """See `Task`: target tokens of the batch."""
        return samples.targets(chosen, self.stage.train_on_prompt)

    def loss(self, forward: Forward, packed: PackedSamples, rows: Sequence[int]) -> Tensor:
        """See `Task`: negative log-likelihood."""
        return -forward(packed.rows, packed.target_positions(self.stage.train_on_prompt)).sum()

    def observe(self, forward: Forward, packed: PackedSamples) -> Tensor:
        """See `Task`: log-probabilities of the response tokens."""
        return forward(packed.rows, packed.target_positions(train_on_prompt=False))

    def measure(self, outputs: Sequence[Tensor], rows: Sequence[int]) -> dict[str, float]:
        """See `Task`: nats per response token."""
        logprobs = torch.cat(list(outputs))
        return {"validation_loss": float(-logprobs.mean()), "validation_perplexity": float(torch.exp(-logprobs.mean()))}

    def save(self, folder: Path, model: nn.Module, weights: dict[str, Tensor], outputs: Sequence[Tensor]) -> None:
        """See `Task`: a Hugging Face folder."""
        assert isinstance(model, PolicyModel)
        model.save(folder, weights, self.source)
