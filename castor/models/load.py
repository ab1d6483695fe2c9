"""Score models by what is in the folder: Castor's own, the published PKU layout, or a plain sequence classifier."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from castor.io.errors import CastorError
from castor.model_reference import ModelLike
from castor.models.backbone import find_file, load_config
from castor.models.export import is_classifier, load_classifier, read_classifier_info
from castor.models.head_kind import SCORE_FILE
from castor.models.moderation import is_moderation_model
from castor.models.pku import is_pku, load_pku, read_pku_info
from castor.models.score import ScoreInfo, ScoreModel, read_own_info


def load_score_model(model: ModelLike, dtype: torch.dtype) -> ScoreModel:
    """A score model; `dtype` is that of its backbone. Raises CastorError when it is none, or its parts do not fit."""
    if find_file(model, SCORE_FILE) is not None:
        return ScoreModel.load(model, dtype)
    config = load_config(model)
    if is_pku(config):
        return load_pku(model, config, dtype)
    if is_classifier(config):
        return load_classifier(model, config, dtype)
    raise _no_score_model(model, config)


def load_critic(model: ModelLike, dtype: torch.dtype) -> ScoreModel:
    """A critic that begins with what a score model predicts at every token."""
    return load_score_model(model, dtype).as_critic()


def read_score_info(model: ModelLike) -> ScoreInfo:
    """What a score model measures, without loading it. Raises CastorError as loading does."""
    if find_file(model, SCORE_FILE) is not None:
        return read_own_info(model)
    config = load_config(model)
    if is_pku(config):
        return read_pku_info(model, config)
    if is_classifier(config):
        return read_classifier_info(model, config)
    raise _no_score_model(model, config)


def _no_score_model(model: ModelLike, config: PreTrainedConfig) -> CastorError:
    if is_moderation_model(model):
        return CastorError(
            f"{model} holds a moderation model, and a reward or cost model is needed here: give one, or in an rlhf "
            "signal add classifier, which makes a cost of it"
        )
    kind = ", ".join(config.architectures or []) or config.model_type
    return CastorError(
        f"{model} holds no score model ({SCORE_FILE} is missing), but a {kind}: train a reward or cost model on it, "
        "or give one"
    )
