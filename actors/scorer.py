"""The scorers of the closing comparison, as Ray actors."""

from __future__ import annotations

import numpy as np
import ray
from numpy.typing import NDArray

from actors.device import take_device
from castor.config.signal import Classifier
from castor.config.training import Engine
from castor.experience import Experience
from castor.model_reference import ModelLike, ModelReference


@ray.remote
class ScoreWorker:
    """A scorer of its own, for evaluation."""

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

    def ready(self) -> None:
        """Answers once the model is loaded."""

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores."""
        return self.scorer.score(experience)
