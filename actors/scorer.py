"""A frozen score model: scores of finished responses."""

from __future__ import annotations

import numpy as np
import ray
from numpy.typing import NDArray

from castor.config.rlhf import Classifier
from castor.config.training import Engine
from castor.experience import Experience


class Scorer:
    """The score model alone, inside whichever actor holds it: with `classifier`, a cost from a moderation model."""

    def __init__(self, model: str, engine: Engine, classifier: Classifier | None = None) -> None:
        from actors.deepspeed_engine import device, resolve_dtype
        from castor.models.classifier_cost import ClassifierCost
        from castor.models.load import load_score_model
        from castor.models.moderation import ModerationModel
        from castor.models.score import ScoreModel

        self.engine, self.device = engine, device()
        dtype = resolve_dtype(engine.dtype)
        frozen: ScoreModel | ClassifierCost
        if classifier is None:
            frozen = load_score_model(model, dtype)
        else:
            frozen = ClassifierCost(ModerationModel.load(model, dtype), classifier, model)
        self.model = frozen.eval().requires_grad_(False).to(self.device)

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores at the last token of each response."""
        from actors.batch import forward_by_budget

        return forward_by_budget(
            experience,
            lambda micro: self.model(micro.rows, micro.last_positions),
            lengths=np.ones(len(experience), dtype=np.int64),
            engine=self.engine,
            device=self.device,
        )


@ray.remote
class ScoreWorker:
    """A scorer of its own, for evaluation."""

    def __init__(self, model: str, engine: Engine, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.scorer = Scorer(model, engine)

    def ready(self) -> None:
        """Answers once the model is loaded."""

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores."""
        return self.scorer.score(experience)
