"""The supervised stages' tasks, by the config section that asks for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castor.config.dpo import DPO
from castor.config.moderation import Moderation
from castor.config.preference import Cost, Reward
from castor.config.supervised import SFT, Supervised
from castor.model_reference import ModelLike
from trainers.supervised.tasks.dpo import DPOTask
from trainers.supervised.tasks.moderation import ModerationTask
from trainers.supervised.tasks.preference import PreferenceTask
from trainers.supervised.tasks.safety import SafetyTask
from trainers.supervised.tasks.sft import SFTTask
from trainers.supervised.tasks.task import Task


def make_task(
    stage: Supervised, rows: Sequence[Any], model: ModelLike, training: NDArray[np.int64] | None = None
) -> Task:  # fmt: skip
    """The task of a stage.

    Args:
        stage: its section.
        rows: all rows, those of the validation too.
        model: what it starts from, whose tokenizer the result gets.
        training: [n] which rows are trained on, and may set what is learned from their counts; None: all.

    """
    if isinstance(stage, SFT):
        return SFTTask(stage, rows, model)
    if isinstance(stage, Cost) and stage.loss == "sign":
        return SafetyTask(stage, rows, model)
    if isinstance(stage, Reward | Cost):
        return PreferenceTask(stage, rows, model)
    if isinstance(stage, Moderation):
        return ModerationTask(stage, rows, model, training)
    if isinstance(stage, DPO):
        return DPOTask(stage, rows, model)
    raise TypeError(f"no task is known for a section of type {type(stage).__name__}")
