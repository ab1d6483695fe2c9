"""Direct preference optimisation: a policy that prefers one response of a pair more than its reference does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from castor.algorithms.dpo import dpo_loss, reward_margins, safedpo_loss, safety_first
from castor.config.dpo import DPO
from castor.data.rows.schemas import Exchange, PreferenceRow
from castor.data.tokens.samples import PackedSamples, Samples
from castor.model_reference import ModelReference
from castor.models.policy import PolicyModel
from castor.run.files import TrainingFiles
from trainers.supervised.reference_logprobs import reference_logprobs, response_logprobs
from trainers.supervised.tasks.task import Forward, Task


class DPOTask(Task):
    """Raise the log-ratio to the reference of the first response of each pair over that of the second."""

    def __init__(
        self, stage: DPO, rows: Sequence[PreferenceRow], model: ModelReference, reference: ModelReference
    ) -> None:
        self.stage, self.rows, self.source, self.frozen = stage, rows, model, reference
        self.first = np.empty(len(rows), dtype=np.int8)  # which response is to be preferred
        self.unsafe = np.zeros(len(rows), dtype=np.bool_)  # for safedpo: whether the other one is unsafe
        for number, row in enumerate(rows):  # once: they may come from a disk
            first = first_of(stage, row)
            if first is None:
                raise ValueError("a pair that DPO cannot order got past the loader")
            self.first[number] = first
            self.unsafe[number] = not _safe(row)[1 - first]
        self.kept: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # both set by `prepare`
        self.reference: NDArray[np.float32] = np.empty((0, 2), dtype=np.float32)

    def texts(self) -> Iterator[Sequence[Exchange]]:
        """See `Task`."""
        for row, first in zip(self.rows, self.first, strict=True):
            pair = row.exchanges
            yield pair[first], pair[1 - first]

    def prepare(self, samples: Samples, files: TrainingFiles) -> None:
        """See `Task`: the reference's log-probabilities of every sample."""
        self.kept = samples.kept
        self.reference = reference_logprobs(self.stage, self.frozen, samples, files)

    def load(self, dtype: torch.dtype) -> nn.Module:
        """See `Task`."""
        return PolicyModel.load(self.source, dtype, engine=self.stage.engine)

    def weight(self, samples: Samples, chosen: NDArray[np.int64]) -> int:
        """See `Task`: pairs of the batch."""
        return len(chosen)

    def loss(self, forward: Forward, packed: PackedSamples, rows: Sequence[int]) -> Tensor:
        """See `Task`."""
        return self._losses(self._margins(self.observe(forward, packed), rows), rows).sum()

    def observe(self, forward: Forward, packed: PackedSamples) -> Tensor:
        """See `Task`: log-probabilities [pairs, 2] of whole responses."""
        return response_logprobs(forward, packed).view(-1, 2)

    def measure(self, outputs: Sequence[Tensor], rows: Sequence[int]) -> dict[str, float]:
        """See `Task`: loss, and the implicit rewards: share of pairs in order, mean margin, mean of each side.

        `chosen_reward` below zero means that the policy has come to find the preferred responses less likely than its
        reference does, which DPO allows as long as the others fall further.
        """
        logprobs = torch.cat(list(outputs))
        margins = self._margins(logprobs, rows)
        chosen, rejected = (self.stage.beta * (logprobs - self._reference(rows, logprobs))).mean(0).tolist()
        return {
            "validation_loss": float(self._losses(margins, rows).mean()),
            "accuracy": float((margins > 0).double().mean()),
            "margin_mean": float(margins.mean()),
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }

    def save(self, folder: Path, model: nn.Module, weights: dict[str, Tensor], outputs: Sequence[Tensor]) -> None:
        """See `Task`: a Hugging Face folder."""
        assert isinstance(model, PolicyModel)
        model.save(folder, weights, self.source)

    def _margins(self, logprobs: Tensor, rows: Sequence[int]) -> Tensor:
        return reward_margins(logprobs, self._reference(rows, logprobs), self.stage.beta)

    def _losses(self, margins: Tensor, rows: Sequence[int]) -> Tensor:
        """[pairs], like `margins`."""
        if self.stage.loss == "dpo":
            return dpo_loss(margins, self.stage.label_smoothing)
        unsafe = torch.from_numpy(self.unsafe[np.asarray(rows, dtype=np.int64)]).to(margins.device)
        return safedpo_loss(margins, unsafe, self.stage.margin)

    def _reference(self, rows: Sequence[int], like: Tensor) -> Tensor:
        """[pairs, 2] of the samples made from the given rows."""
        chosen = np.searchsorted(self.kept, np.asarray(rows, dtype=np.int64))  # `kept` ascends
        return torch.from_numpy(self.reference[chosen]).to(like)


def first_of(stage: DPO, row: PreferenceRow) -> int | None:
    """Which response of a row the stage is to prefer; None: the pair is left out. The row has `stage.labels`."""
    preferred = row.better_response_id if stage.preference == "better" else row.safer_response_id
    if preferred is None:
        raise ValueError("a row without the label that orders its pair got past the loader")
    return preferred if stage.loss == "dpo" else safety_first(preferred, _safe(row))


def _safe(row: PreferenceRow) -> tuple[bool, bool]:
    return bool(row.is_response_0_safe), bool(row.is_response_1_safe)
