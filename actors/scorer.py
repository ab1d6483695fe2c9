"""The scorers of the closing comparison, as Ray actors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray

from actors.device import take_device
from actors.recording import recorded
from actors.startup import IMPORTS, Starting, during, phase
from castor.config.judge import Judge, Measures
from castor.config.training import Engine
from castor.experience import Experience
from castor.model_reference import ModelLike, ModelReference


@ray.remote
@recorded
class ScoreWorker(Starting):
    """A scorer of its own, for evaluation: one judge after the other."""

    def __init__(self, engine: Engine, threads: int, policy: ModelReference, directory: Path) -> None:
        """`policy`: whose tokens it is given; `directory`: where the module of a function is looked for, too."""
        super().__init__()
        with phase(IMPORTS):
            import torch

            torch.set_num_threads(threads)
            take_device()
            import castor.scoring.experience_scorer  # noqa: F401
        self.engine, self.policy, self.directory = engine, policy, directory

    @during("model")
    def load(self, judge: Judge, measures: Measures, model: ModelLike | None) -> None:
        """Be this judge; `model` is its score or moderation model. What it was before is let go of first."""
        import gc

        import torch

        from castor.scoring.experience_scorer import judge_scorer

        self.scorer = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.scorer = judge_scorer(judge, measures, model, self.engine, self.policy, self.directory)

    def score(self, experience: Experience) -> NDArray[np.float32]:
        """[N] float32 scores by the judge that was loaded last."""
        assert self.scorer is not None
        return self.scorer.score(experience)
