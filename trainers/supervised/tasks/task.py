"""What each supervised stage learns: the samples in its rows, their loss, and how the result is measured and saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from castor.data.tokens.samples import PackedSamples, Samples
from castor.run.files import TrainingFiles

Forward = Callable[..., Tensor]


class Task(Protocol):
    """One kind of supervised stage."""

    def texts(self) -> Iterable[Sequence[Sequence[Any]]]:
        """Per row, the sequences of its sample: (prompt, response) or (prompt, response, history)."""
        ...

    def prepare(self, samples: Samples, files: TrainingFiles) -> None:
        """Find out what must be known of all samples before the model is loaded; keep it in `files`. Collective."""
        return

    def load(self, dtype: torch.dtype) -> nn.Module:
        """The model to train, from the stage's starting point; its backbone is of `dtype`."""
        ...

    def weight(self, samples: Samples, chosen: NDArray[np.int64]) -> int:
        """What the loss of a batch is divided by: its target tokens, or its samples."""
        ...

    def loss(self, forward: Forward, packed: PackedSamples, rows: Sequence[int]) -> Tensor:
        """Sum of the loss over the packed samples, which are those of the given rows. Scalar."""
        ...

    def measure(self, outputs: Sequence[Tensor], rows: Sequence[int]) -> dict[str, float]:
        """Validation metrics from what `observe` returned for batches of samples: those of `rows`, in order.

        Called on rank 0 only.
        """
        ...

    def observe(self, forward: Forward, packed: PackedSamples) -> Tensor:
        """What validation needs of one batch."""
        ...

    def save(self, folder: Path, model: nn.Module, weights: dict[str, Tensor], outputs: Sequence[Tensor]) -> None:
        """Write the trained model from its full weights, whole or not at all. `outputs`: those last measured."""
        ...
