"""What a stage that trains a score or moderation model starts from: a head that goes on, or a fresh one."""

from __future__ import annotations

from typing import Literal

import torch

from castor.io.errors import CastorError
from castor.model_reference import ModelLike, ModelReference
from castor.models.head_kind import HeadKind, head_kind
from castor.models.load import load_score_model
from castor.models.moderation import ModerationInfo, ModerationModel
from castor.models.score import ScoreInfo, ScoreModel


def start_score_model(
    model: ModelLike, kind: Literal["reward", "cost"], dtype: torch.dtype, head_bias: bool
) -> ScoreModel:
    """A model of `kind` to train: the head of a model of that kind goes on, any other model gets a fresh one.

    The raw scores go on, which the loss is taken of. The normaliser does not: the stage fits its own to its rows.

    Raises CastorError when a head has a bias that `head_bias` rules out.
    """
    if _kind_of(model) != kind:
        return ScoreModel.from_backbone(model, ScoreInfo(kind), dtype, head_bias)
    found = load_score_model(model, dtype)
    head = {name: parameter.detach() for name, parameter in found.score_head.named_parameters()}
    bias = head.get("bias", torch.zeros(1))
    if not head_bias and float(bias) != 0.0:
        raise CastorError(
            f"head_bias is false, but the head of {model}, which goes on, has the bias {float(bias):.4g}: set "
            "head_bias: true, or start from a model without one"
        )
    return ScoreModel.with_head(found.backbone, ScoreInfo(kind), head["weight"], bias if head_bias else None)


@torch.no_grad()
def start_moderation_model(model: ModelLike, info: ModerationInfo, dtype: torch.dtype) -> ModerationModel:
    """A moderation model to train: the label head of a model with the same taxonomy goes on, and its severity head.

    Thresholds and temperatures are those of `info`: the stage fits its own. Another model, and a severity head that the
    model it starts from lacks, begin fresh.
    """
    if _kind_of(model) != info.taxonomy:
        return ModerationModel.from_backbone(model, info, dtype)
    found = ModerationModel.load(model, dtype)
    started = ModerationModel(found.backbone, info)
    order = [found.info.categories.index(category) for category in info.categories]
    started.label_head.weight.copy_(found.label_head.weight[order])
    if started.severity_head is not None and found.severity_head is not None:
        started.severity_head.load_state_dict(found.severity_head.state_dict())
    return started


def start_line(model: ModelLike, kind: HeadKind) -> str | None:
    """What to say of the head with which a stage of `kind` starts; None for a language model, which has none."""
    found = _kind_of(model)
    if found is None:
        return None
    if found == kind:
        return f"goes on with the head of {model}; its normaliser or thresholds are fitted anew"
    return f"starts with a fresh head: {model} has one of kind {found}, not {kind}"


def _kind_of(model: ModelLike) -> HeadKind | None:
    ModelReference.of(model).local()  # from here on it is known
    kind = head_kind(model)
    assert kind != "unknown"
    return kind
