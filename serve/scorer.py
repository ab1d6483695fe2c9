"""The score models of a run, from text to score. Imported by replicas only: it needs torch."""

from __future__ import annotations

from pathlib import Path

from castor.config.serve import Serve
from castor.scoring.frozen import FrozenModel
from castor.scoring.text_model import TextModel


def load_scorer(kind: str, folder: Path, config: Serve) -> TextModel:
    """The score model of a finished stage, or a moderation model as one, on this process's device.

    Raises CastorError when the folder holds no such model, and ValueError when its scores are of another kind.
    """
    classifier = config.cost_classifier if kind == "cost" else None
    frozen = FrozenModel.load_scores(
        str(folder), config.dtype, config.score_batch_tokens, classifier=classifier, name=f"the {kind} model"
    )
    if frozen.score_info.score_type != kind:
        raise ValueError(f"{folder} holds a {frozen.score_info.score_type} model, not a {kind} model")
    return TextModel.around(frozen, str(folder), config.template)
