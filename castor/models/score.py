"""Score models (reward, cost) and critics: a linear head on any `AutoModel` backbone."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from castor.io.errors import CastorError, first_line
from castor.model_reference import ModelLike, ModelReference
from castor.models.backbone import find_file, hidden_width, load_backbone, model_inputs, packing_of
from castor.models.head import Float32Linear, check_head, save_with_head
from castor.models.head_kind import SCORE_FILE
from castor.models.normalizer import Normalizer
from castor.models.read_tokens import computed_at, spares_tokens
from castor.packing import PackedRows

HEAD_FILE = "score_head.safetensors"
Around: TypeAlias = Callable[[PreTrainedModel, PackedRows], AbstractContextManager[None]]
"""What goes on around a pass of the backbone over rows (`castor.models.trunk`)."""
ScoreType = Literal["reward", "cost", "critic"]


@dataclass(frozen=True)
class ScoreInfo:
    """What a score means, and its normaliser.

    A reward is normalised as (x - mean) / std; a cost only as x / std: its zero never moves; a critic not at all.
    """

    score_type: ScoreType
    mean: float = 0.0
    std: float = 1.0
    safe_mean: float | None = None  # costs: mean normalised score of held-out responses it calls safe (score <= 0)
    unsafe_mean: float | None = None  # ... and of those it calls unsafe

    def __post_init__(self) -> None:
        if self.score_type == "cost" and self.mean != 0.0:
            raise ValueError("a cost is never shifted: its normaliser has mean 0")
        if self.score_type == "critic" and (self.mean, self.std) != (0.0, 1.0):
            raise ValueError("a critic is not normalised: its normaliser is the identity")
        if not self.std > 0:
            raise ValueError(f"the normaliser's std must be positive, not {self.std}")


class ScoreModel(nn.Module):
    """Backbone and head; returns a normalised score at any token."""

    def __init__(self, backbone: PreTrainedModel, info: ScoreInfo, head_bias: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        width = hidden_width(backbone)
        self.score_head = Float32Linear(width, 1, bias=head_bias)
        nn.init.normal_(self.score_head.weight, std=1.0 / (width + 1) ** 0.5)
        if head_bias:
            nn.init.zeros_(self.score_head.bias)
        self.info = info
        self.packing = packing_of(backbone)
        self.spares = spares_tokens(backbone, self.packing)
        self.normalizer: Normalizer | None = None  # statistics in training, where the stage asks for them
        self.around: Around = nothing_around

    @classmethod
    def from_backbone(cls, model: ModelLike, info: ScoreInfo, dtype: torch.dtype, head_bias: bool = True) -> ScoreModel:
        """A fresh head on a model's backbone (a causal LM's head is left behind)."""
        return cls(load_backbone(model, dtype), info, head_bias)

    @classmethod
    def with_head(cls, backbone: PreTrainedModel, info: ScoreInfo, weight: Tensor, bias: Tensor | None) -> ScoreModel:
        """A given head [1, hidden] with its bias [1], if it has one, on a backbone.

        Raises CastorError when the head is not as wide as the backbone's hidden states.
        """
        model = cls(backbone, info, head_bias=bias is not None)
        head = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        width, score_head = model.score_head.in_features, model.score_head
        wanted = {name: tuple(parameter.shape) for name, parameter in score_head.named_parameters()}
        check_head(backbone.name_or_path, head, wanted, f"a score model with hidden states of {width} numbers")
        score_head.load_state_dict(head)
        return model

    @classmethod
    def load(cls, model: ModelLike, dtype: torch.dtype) -> ScoreModel:
        """A score model that `save_score_model` wrote; `dtype` is that of its backbone. Raises CastorError for another.

        `castor.models.load.load_score_model` also reads the other layouts.
        """
        info = read_own_info(model)
        path = ModelReference.of(model).local() / HEAD_FILE
        if not path.is_file():
            raise CastorError(f"{model} has no {HEAD_FILE}: the score model is not whole, train it again")
        head = load_file(path)
        return cls.with_head(load_backbone(model, dtype), info, head["weight"], head.get("bias"))

    def as_critic(self) -> ScoreModel:
        """A critic on the same backbone that begins by predicting the scores; the normaliser goes into its head."""
        weight, offset = self.folded_head()
        return ScoreModel.with_head(self.backbone, ScoreInfo("critic"), weight, offset)

    @torch.no_grad()
    def folded_head(self) -> tuple[Tensor, Tensor]:
        """Weight [1, hidden] and bias [1] in float64 of a linear head that gives the normalised scores by itself."""
        head = {name: parameter.double() for name, parameter in self.score_head.named_parameters()}
        bias = head.get("bias", head["weight"].new_zeros(1))
        return head["weight"] / self.info.std, (bias - self.info.mean) / self.info.std

    def forward(self, rows: PackedRows, positions: Tensor) -> Tensor:
        """[K] float32 normalised scores at the given flat token positions [K] int64."""
        rows, inputs = model_inputs(rows, self.packing)
        read = rows.flat[positions]
        with self.around(self.backbone, rows), computed_at(self.backbone, read, self.spares):
            hidden = self.backbone(**inputs).last_hidden_state.flatten(0, 1)
        raw = self.score_head(hidden[read]).squeeze(-1)
        if len(positions) == 0:  # an empty micro-batch still has to reach every parameter in the backward pass
            raw = raw + 0.0 * self.score_head(hidden).sum()
        return (raw - self.info.mean) / self.info.std


def nothing_around(backbone: PreTrainedModel, rows: PackedRows) -> AbstractContextManager[None]:
    """The pass alone."""
    return nullcontext()


def save_score_model(
    folder: Path, config: PreTrainedModel, weights: dict[str, Tensor], info: ScoreInfo, tokenizer_from: ModelLike
) -> None:
    """Write a score model, as `save_with_head`; `config` is its backbone."""
    prefix = "score_head."
    head = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    save_with_head(folder, config, weights, head, info, (HEAD_FILE, SCORE_FILE), tokenizer_from)


def read_own_info(model: ModelLike) -> ScoreInfo:
    """What the score model that Castor saved measures. Raises CastorError when it is none, or damaged."""
    path = find_file(model, SCORE_FILE)
    if path is None:
        raise CastorError(f"{model} holds no score model ({SCORE_FILE} is missing): train one, or fix the path")
    try:
        return ScoreInfo(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise CastorError(f"{path} does not describe a score model: {first_line(error)}") from error
