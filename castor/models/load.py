"""Score models by what is in the folder: Castor's own, the published PKU layout, or a plain sequence classifier."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedConfig

from castor.io.errors import CastorError
from castor.models.backbone import find_file, load_config
from castor.models.export import is_classifier, load_classifier, read_classifier_info
from castor.models.moderation import is_moderation_model
from castor.models.pku import is_pku, load_pku, read_pku_info
from castor.models.score import SCORE_FILE, ScoreInfo, ScoreModel, read_own_info


def load_score_model(model: str | Path, dtype: torch.dtype) -> ScoreModel:
    """The score model of a folder or hub id. Raises CastorError when it holds none, or one that does not fit."""
    name = str(model)
    if find_file(name, SCORE_FILE) is not None:
        return ScoreModel.load(name, dtype)
    config = load_config(name)
    if is_pku(config):
        return load_pku(name, config, dtype)
    if is_classifier(config):
        return load_classifier(name, config, dtype)
    raise _no_score_model(name, config)


def load_critic(model: str | Path, dtype: torch.dtype) -> ScoreModel:
    """A critic that begins with what the score model of a folder or hub id predicts at every token."""
    return load_score_model(model, dtype).as_critic()


def read_score_info(model: str | Path) -> ScoreInfo:
    """What the score model of a folder or hub id measures, without loading it. Raises CastorError as loading does."""
    name = str(model)
    if find_file(name, SCORE_FILE) is not None:
        return read_own_info(name)
    config = load_config(name)
    if is_pku(config):
        return read_pku_info(name, config)
    if is_classifier(config):
        return read_classifier_info(name, config)
    raise _no_score_model(name, config)


def _no_score_model(model: str, config: PreTrainedConfig) -> CastorError:
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
