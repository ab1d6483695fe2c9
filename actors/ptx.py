"""PTX: a language-model loss on demonstrations, mixed into the policy's updates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from castor.config.learner import PTX
from castor.config.training import Engine
from castor.data.rows.schemas import QARow
from castor.data.tokens.batches import batches
from castor.data.tokens.samples import Samples
from castor.data.tokens.template import PromptTemplate
from castor.dealing import deal
from engines.deepspeed_engine import TrainEngine


class PTXStream:
    """Demonstrations in the order a seed decides, the same on all ranks; each rank works on its share."""

    def __init__(
        self, config: PTX, rows: Sequence[QARow], template: PromptTemplate, max_length: int, seed: int
    ) -> None:
        self.config, self.position, self.seed = config, 0, seed
        self.samples = Samples(template, ([row.exchange] for row in rows), max_length)
        self.lengths = self.samples.lengths()

    def accumulate(self, engine: TrainEngine, options: Engine, rank: int, world_size: int) -> float:
        """Backward passes of ptx_coeff × (mean negative log-likelihood per response token) over the next batch.

        Returns this rank's share of the loss, the coefficient left out.
        """
        batch = next(self._batches())
        self.position += 1
        targets = self.samples.targets(batch, train_on_prompt=False)
        total = 0.0
        for piece in deal(self.lengths[batch], world_size, options.micro_batch_tokens)[rank]:
            chosen = batch[np.asarray(piece, dtype=np.int64)]
            packed = self.samples.pack(chosen, options.pack_length, engine.device)
            loss = -engine.forward(packed.rows, packed.target_positions(train_on_prompt=False)).sum() / targets
            engine.accumulate(self.config.ptx_coeff * loss)
            total += float(loss.detach())
        return total

    def _batches(self) -> Iterator[NDArray[np.int64]]:
        return batches(len(self.samples), self.config.batch_size, self.seed, start=self.position)
