"""The scorers of the closing comparison, as Ray actors."""

from __future__ import annotations

import numpy as np
import ray
from numpy.typing import NDArray

from actors.device import take_device
from actors.recording import recorded
from actors.startup import Starting, during
from castor.config.signal import Classifier
from castor.config.training import Engine
from castor.experience import Experience
from castor.model_reference import ModelLike, ModelReference


@ray.remote
@recorded
class ScoreWorker(Starting):
    """A scorer of its own, for evaluation."""

    @during("model")
    def __init__(
        self,
        model: ModelLike,
        engine: Engine,
        threads: int,
        policy: ModelReference,
        classifier: Classifier | None = None,
    ) -> None:
        """`model` is a score model, or with `classifier` a moderation model; `policy`: whose tokens it is given."""
        import torch

        torch.set_num_threads(threads)
        take_device()
        from castor.scoring.experience_scorer import model_scorer

        self.scorer = model_scorer(model, engine, policy, classifier)

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores."""
        return self.scorer.score(experience)
