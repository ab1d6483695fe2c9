"""Whether a judge can judge, looked at in the driver before anything is started for it."""

from __future__ import annotations

from castor.config.judge import Judge, Measures
from castor.io.errors import CastorError
from castor.io.user_function import load_function
from castor.model_reference import ModelLike
from castor.models.classifier_cost import check_classifier
from castor.models.load import read_score_info
from castor.models.moderation import read_moderation_info


def check_judge(what: str, judge: Judge, measures: Measures, model: ModelLike | None) -> None:
    """Raise CastorError when a judge's function cannot be imported, or its model does not give what it measures.

    `what` is what the message calls it; `model` is its score or moderation model, where it has one.
    """
    if judge.function is not None:
        load_function(judge.function)
    if model is None:
        return
    if judge.classifier is not None:
        check_classifier(read_moderation_info(model), judge.classifier, f"{what}: {model}")
        return
    kind = read_score_info(model).score_type
    if kind != measures:
        raise CastorError(f"{what}: {model} is a {kind} model: give a {measures} model")
