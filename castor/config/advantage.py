"""From scores to advantages: which estimator, how signals are combined, and where the KL penalty goes."""

from typing import Literal

from pydantic import Field, model_validator

from castor.config.base import Section, reject_foreign_keys


class Advantage(Section):
    """From scores to advantages: estimated for every signal by itself, then combined under the multipliers."""

    estimator: Literal["gae", "group_relative", "leave_one_out", "reinforce_pp"] = Field(
        "gae",
        description="gae: generalised advantage estimation with one critic per signal; without critics: "
        "group_relative (GRPO) and leave_one_out (RLOO) compare the samples of a prompt, reinforce_pp (REINFORCE++) "
        "whitens the return to go",
    )
    gamma: float = Field(1.0, gt=0, le=1, description="discount; gae and reinforce_pp only")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ of GAE")
    group_std: bool = Field(True, description="group_relative: divide by the standard deviation of the group, too")
    whiten: bool = Field(
        False, description="shift and scale the advantages of each signal to mean 0 and variance 1 over a step's tokens"
    )
    combination: Literal["normalized", "plain"] = Field(
        "normalized",
        description="(A_r - Σ λ A_c) / (1 + Σ λ), or A_r - Σ λ A_c. The KL penalty has full weight in both",
    )
    kl_coeff: float = Field(0.02, ge=0, description="effective weight of the KL penalty, whatever the multipliers are")
    kl_placement: Literal["auto", "reward", "loss"] = Field(
        "auto",
        description="reward: per-token penalty log π/π_ref (k1) in every stream; loss: k3 beside the policy loss; "
        "auto: loss where advantages are divided by their deviation, which would rescale the penalty, else reward",
    )
    kl_target: float | None = Field(
        None,
        gt=0,
        description="nats a response: adapt the coefficient so that the KL keeps to it (Ziegler et al. 2019)",
    )
    kl_horizon: int = Field(10_000, ge=1, description="kl_target: responses over which the coefficient adapts")
    clip_range_score: float = Field(
        50.0, gt=0, description="per-token rewards and costs are clamped to ± this, KL included"
    )
    clip_range_value: float = Field(5.0, gt=0, description="clip range of the critics' loss")

    @model_validator(mode="after")
    def _keys_agree(self) -> "Advantage":
        own = {
            "gae": {"gamma", "gae_lambda", "clip_range_value"},
            "group_relative": {"group_std"},
            "leave_one_out": set[str](),
            "reinforce_pp": {"gamma"},
        }
        shared = set(Advantage.model_fields) - set[str]().union(*own.values())
        reject_foreign_keys(self, "estimator", self.estimator, own[self.estimator] | shared)
        if self.estimator == "reinforce_pp" and self.whiten:
            raise ValueError("estimator reinforce_pp whitens by itself: remove whiten")
        if self.kl_target is None and self.kl_horizon != 10_000:
            raise ValueError("kl_horizon without kl_target adapts nothing: add kl_target, or remove kl_horizon")
        if self.kl_target is not None and self.kl_coeff == 0:
            raise ValueError("a kl_coeff of 0 cannot be adapted to kl_target: start it above 0")
        return self

    @property
    def by_group(self) -> bool:
        """Whether the samples of one prompt are compared with each other."""
        return self.estimator in ("group_relative", "leave_one_out")

    @property
    def kl_in_reward(self) -> bool:
        """Whether the KL penalty is part of the streams, or else of the loss."""
        by_deviation = {"group_relative": self.group_std, "reinforce_pp": True}.get(self.estimator, False)
        rescaled = self.whiten or by_deviation
        return self.kl_placement == "reward" or (self.kl_placement == "auto" and not rescaled)
