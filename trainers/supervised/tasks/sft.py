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
from castor.data.tokens.template import load_tokenizer
from castor.io.checkpoint import atomic_folder
from castor.model_reference import ModelReference
from castor.models.policy import PolicyModel
from trainers.supervised.tasks.task import Forward, Task


class SFTTask(Task):
    """Predict the demonstrated response."""

    def __init__(self, stage: SFT, rows: Sequence[QARow], model: ModelReference) -> None:
        self.stage, self.rows, self.source = stage, rows, model

    def texts(self) -> Iterator[Sequence[Exchange]]:
        """See `Task`."""
        return ([row.exchange] for row in self.rows)

    def load(self, model: ModelReference, dtype: torch.dtype) -> nn.Module:
        """See `Task`."""
        return PolicyModel.load(model.name, dtype, model.trust_remote_code)

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
        save_policy(folder, model, weights, self.source)


def save_policy(folder: Path, model: nn.Module, weights: dict[str, Tensor], source: ModelReference) -> None:
    """Write a policy of the given full weights and the tokenizer of `source`, whole or not at all."""
    assert isinstance(model, PolicyModel)
    with atomic_folder(folder) as aside:
        model.lm.save_pretrained(aside, state_dict={k.removeprefix("lm."): v for k, v in weights.items()})
        load_tokenizer(source.name, source.trust_remote_code).save_pretrained(aside)
