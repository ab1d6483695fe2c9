"""The score models of a run, from text to score. Imported by replicas only: it needs torch."""

from __future__ import annotations

from castor.config.serve import Serve
from castor.scoring.frozen import FrozenModel
from castor.scoring.text_model import TextModel
from serve.targets import Judge


def load_scorer(kind: str, judge: Judge, template: str, config: Serve) -> TextModel:
    """A score model, or a moderation model as one, on this process's device; `template` is the run's prompt format.

    Raises CastorError when there is no such model, and ValueError when its scores are of another kind.
    """
    frozen = FrozenModel.load_scores(
        judge.model, config.dtype, config.score_batch_tokens, classifier=judge.classifier, name=f"the {kind} model"
    )
    if frozen.score_info.score_type != kind:
        raise ValueError(f"{judge.model} is a {frozen.score_info.score_type} model, not a {kind} model")
    return TextModel.around(frozen, judge.model, template)
