"""The preference models: reward and cost."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from castor.config.model import ModelOption
from castor.config.supervised import Supervised


class Preference(Supervised):
    """What reward and cost model share."""

    model: ModelOption = Field("stage:sft", description="backbone to start from: stage:NAME, a folder, or a hub id")
    loss_type: Literal["sequence-wise", "token-wise"] = Field(
        "sequence-wise",
        description="compare the end scores, or the scores at every position from the first token that differs on",
    )
    regularization: float = Field(0.001, ge=0, description="weight of the mean squared score")
    head_bias: bool = Field(
        True,
        description="the score head has a bias; without one a cost model can be exported as a plain sequence "
        "classifier of any architecture",
    )
    normalize: Literal["held_out", "running", "ema", "none"] = Field(
        "held_out",
        description="where the normaliser of the finished model, (x - mean) / std for a reward and x / std for a cost, "
        "comes from: the held-out rows after training (true), the training rows seen (running) or an exponential "
        "moving average over training batches (ema); none (false) leaves scores as they are",
    )
    normalizer_momentum: float = Field(0.9, ge=0, lt=1, description="ema: share of the old statistics kept per batch")
    normalize_score_during_training: bool = Field(
        False, description="running and ema: the loss sees normalised scores too"
    )

    @field_validator("normalize", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        word = str(value).lower()
        return "held_out" if word in ("true", "yes", "on") else "none" if word in ("false", "no", "off") else value

    @model_validator(mode="after")
    def _statistics_while_training(self) -> "Preference":
        if self.normalize_score_during_training and self.normalize not in ("running", "ema"):
            raise ValueError(
                f"normalize_score_during_training needs statistics while training, and normalize: {self.normalize} "
                "keeps none: set normalize to running or ema"
            )
        return self


class Reward(Preference):
    """Helpfulness: Bradley-Terry on `better_response_id`."""


class Cost(Preference):
    """Harm: Bradley-Terry on `safer_response_id`, and the sign of the score on the safety flags."""

    loss: Literal["pairwise+sign", "sign"] = Field(
        "pairwise+sign",
        description="Safe RLHF eq. 6, on pairs; or only its classification terms (PKU-SafeRLHF sec. 4.2), on single "
        "responses with is_safe: QA rows, and both responses of preference rows",
    )
    sign_weight: float = Field(1.0, gt=0, description="weight of the sign terms; 1 in the papers")

    @model_validator(mode="after")
    def _signs_compare_nothing(self) -> "Cost":
        if self.loss == "sign" and self.loss_type == "token-wise":
            raise ValueError("loss: sign judges single responses, and loss_type: token-wise compares two: drop one")
        return self
