"""What a constraint measures, and the rule of its multiplier."""

from typing import Literal

from pydantic import Field, model_validator

from castor.config.base import Section, reject_foreign_keys

Rule = Literal["sgd_log", "adam_log", "projected", "pid", "fixed", "none", "rectified", "crpo"]

LARGEST = 1e6
"""What no λ exceeds, and no gain of a rule: at λ = 1e6 a millionth of the advantage is left to the objective."""

_RANGE = {"lambda_min", "lambda_max"}
_PACE = {"lambda_update_delay_steps"}
RULE_KEYS: dict[str, set[str]] = {
    "sgd_log": {"lambda_init", "lambda_lr"} | _RANGE | _PACE,
    "adam_log": {"lambda_init", "lambda_lr", "lambda_betas"} | _RANGE | _PACE,
    "projected": {"lambda_init", "lambda_lr"} | _RANGE | _PACE,
    "pid": {"lambda_init", "pid_kp", "pid_ki", "pid_kd", "pid_smoothing"} | _RANGE | _PACE,
    "rectified": {"lambda_init", "lambda_lr", "lambda_max"} | _PACE,
    "crpo": {"tolerance"} | _PACE,
    "fixed": {"lambda_init"},
    "none": set(),
}


class Constraint(Section):
    """What must stay at or under the limit, and what the policy is told about it."""

    statistic: Literal["mean", "share"] = Field(
        "mean", description="mean cost, or the share of unsafe responses (cost > 0); share takes unsafe_share as it is"
    )
    confidence: float | None = Field(
        None,
        gt=0.5,
        lt=1,
        description="with it, the one-sided upper confidence bound of the statistic must stay at or under the limit: "
        "normal for a mean, Wilson for a share, over the window's responses",
    )
    policy_cost: Literal["score", "indicator"] = Field(
        "score",
        description="what the policy is made to lower: the cost itself, also as the dense stand-in for a share, or "
        "1 for an unsafe response and 0 for a safe one, whose mean is the share",
    )


class Multipliers(Section):
    """The rule of a constraint's multiplier λ. PKU's names; every rule takes only its own keys."""

    rule: Rule = Field(
        "sgd_log",
        description="sgd_log: gradient ascent on log λ (Safe RLHF eq. 31), by lr · λ · violation a step; adam_log: "
        "Adam on log λ with the violation as its gradient; projected: linear ascent, cut to its range; pid: Stooke et "
        "al. 2020; fixed: reward shaping R - λC; none: watched, not priced; rectified: RePO, cost {C - limit}+ per "
        "response; crpo: reward steps, and cost steps on violation",
    )
    lambda_init: float = Field(1.0, ge=0, le=LARGEST, description="λ at the start; pid: start of its integral")
    lambda_lr: float = Field(
        0.1,
        gt=0,
        le=LARGEST,
        description="step size; sgd_log: on log λ for a violation of 1 at λ = 1; adam_log: on log λ, whatever λ and "
        "the violation's usual size are; projected and rectified: on λ for a violation of 1",
    )
    lambda_min: float = Field(0.0, ge=0, le=LARGEST, description="floor of λ")
    lambda_max: float | None = Field(
        5.0,
        gt=0,
        le=LARGEST,
        description="upper limit of λ; null: 1e6, not for sgd_log and adam_log, whose λ grows ever faster",
    )
    lambda_betas: tuple[float, float] = Field((0.9, 0.999), description="adam_log: Adam's betas")
    lambda_update_delay_steps: int = Field(0, ge=0, description="steps before the first update of λ")
    pid_kp: float = Field(0.1, ge=0, le=LARGEST, description="pid: gain on the smoothed violation")
    pid_ki: float = Field(0.01, ge=0, le=LARGEST, description="pid: gain on the sum of violations")
    pid_kd: float = Field(0.1, ge=0, le=LARGEST, description="pid: gain on the rise of the smoothed statistic")
    pid_smoothing: float = Field(
        0.5, ge=0, lt=1, description="pid: weight of the past in the moving averages behind kp and kd; 0: none"
    )
    tolerance: float = Field(0.0, ge=0, description="crpo: a violation up to this still allows a reward step")
    episode_cost_window_size: int = Field(
        128, ge=1, description="responses over which the statistic is taken, over all ranks"
    )

    @model_validator(mode="after")
    def _keys_and_limits_agree(self) -> "Multipliers":
        own = RULE_KEYS[self.rule] | {"episode_cost_window_size"}
        reject_foreign_keys(self, "rule", self.rule, own)
        if self.rule in ("sgd_log", "adam_log") and self.lambda_init == 0:
            raise ValueError(f"rule {self.rule} moves log λ and cannot start at 0: raise lambda_init, or use projected")
        if self.rule in ("sgd_log", "adam_log") and self.lambda_max is None:
            raise ValueError(
                f"rule {self.rule} moves log λ, so that λ grows ever faster while the limit is violated, and needs a "
                "lambda_max: give one (the default is 5), or use projected"
            )
        if "lambda_max" in own and self.lambda_max is not None and self.lambda_max < self.lambda_init:
            raise ValueError(
                f"lambda_max ({self.lambda_max:g}) is below lambda_init ({self.lambda_init:g}): "
                "raise one or lower the other"
            )
        if "lambda_min" in own and self.lambda_min > self.lambda_init:
            raise ValueError(
                f"lambda_min ({self.lambda_min:g}) is above lambda_init ({self.lambda_init:g}): "
                "lower one or raise the other"
            )
        if self.rule == "pid" and not (self.pid_kp or self.pid_ki or self.pid_kd):
            raise ValueError("a pid rule whose gains are all 0 never moves: set pid_ki, or use rule fixed")
        if not all(0 <= beta < 1 for beta in self.lambda_betas):
            raise ValueError(f"lambda_betas {self.lambda_betas} must lie in [0, 1)")
        return self

    @property
    def highest(self) -> float:
        """What λ is cut to: lambda_max, or `LARGEST`."""
        return LARGEST if self.lambda_max is None else self.lambda_max
