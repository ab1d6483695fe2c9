"""Offline preference optimisation of a policy: DPO, SafeDPO, and SACPO as two stages after one another."""

from typing import Literal, Self

from pydantic import Field, model_validator

from castor.config.model import ModelOption
from castor.config.supervised import Supervised


class DPO(Supervised):
    """Direct preference optimisation (Rafailov et al. 2023): a policy from preference rows, without a reward model.

    SACPO (Wachi et al. 2024) is two such stages: the first on `better`, the second with model: stage:FIRST on `safer`
    and beta β/λ, where β is that of the first stage and λ the price of harm.
    """

    model: ModelOption = Field("stage:sft", description="policy to start from: stage:NAME, a folder, or a hub id")
    reference: ModelOption | None = Field(
        None, description="policy the KL penalty is measured from: stage:NAME, a folder or a hub id; null: the start"
    )
    loss: Literal["dpo", "safedpo"] = Field(
        "dpo",
        description="safedpo (Kim et al. 2025): a safe response goes before an unsafe one, whichever is preferred, and "
        "must win by safety_margin; pairs of two unsafe responses are left out. Needs the safety flags",
    )
    preference: Literal["better", "safer"] = Field(
        "better", description="which label orders a pair: better_response_id (helpfulness) or safer_response_id"
    )
    beta: float = Field(0.1, gt=0, description="strength of the KL penalty; in the second stage of SACPO it is β/λ")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="dpo: share of the labels that are taken to be wrong")
    safety_margin: float | None = Field(
        None, ge=0, description="safedpo: Δ, by which a safe response has to beat an unsafe one; null: 10, as the paper"
    )

    @model_validator(mode="after")
    def _loss_has_these_keys(self) -> Self:
        if self.loss == "dpo" and self.safety_margin is not None:
            raise ValueError("loss dpo has no safety_margin: remove it, or set loss to safedpo")
        if self.loss == "safedpo" and self.label_smoothing:
            raise ValueError("loss safedpo has no label_smoothing: remove it, or set loss to dpo")
        if self.loss == "safedpo" and self.preference != "better":
            raise ValueError("loss safedpo brings safety in by itself and orders pairs by better: remove preference")
        return self

    @property
    def labels(self) -> tuple[Literal["better", "safer", "safe_flags"], ...]:
        """What the stage needs to know of a row."""
        return (self.preference,) if self.loss == "dpo" else (self.preference, "safe_flags")

    @property
    def margin(self) -> float:
        """Δ of SafeDPO."""
        return 10.0 if self.safety_margin is None else self.safety_margin
