"""A signal: what judges a finished response, which limit a constraint keeps, and how its critic is trained."""

from typing import Literal

from pydantic import Field, model_validator

from castor.config.judge import Judge, Measures
from castor.config.model import ModelOption
from castor.config.multipliers import Constraint, Multipliers
from castor.config.training import Engine, Optimizer, Resources


class Signal(Judge):
    """One judge of a finished response (exactly one of model, function and http), and a critic that predicts its
    return."""

    HOW = frozenset(
        (
            "ranks",
            "resources",
        )
    )

    role: Literal["objective", "constraint", "monitor"] = Field(
        description="maximise it, keep its mean at or under a limit, or only watch it: a monitor, of which more is "
        "better, is logged, and shows whether the policy pleases its judges alone (alarms.hacking_errors)"
    )
    weight: float = Field(1.0, gt=0, description="objectives only: weight in the sum of objectives")
    threshold: float | None = Field(None, description="constraints only: mean cost must stay at or under it (-d)")
    unsafe_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="constraints only, instead of threshold: the mean cost of a policy with this share of unsafe "
        "responses, safe_mean + share * (unsafe_mean - safe_mean), with the means stored in the cost model's folder; "
        "with constraint.statistic share the limit of the share itself",
    )
    constraint: Constraint = Field(default_factory=Constraint, description="constraints only: what must keep the limit")
    multiplier: Multipliers | None = Field(
        None, description="constraints only: a rule of its own, in place of the run's multipliers as a whole"
    )
    critic: Engine | None = Field(
        default_factory=lambda: Engine(optimizer=Optimizer(lr=5e-6, lr_scheduler_type="constant")),
        description="how the critic is trained; its batch sizes and type also hold for scoring. Only estimator gae "
        "makes critics; null: none",
    )
    critic_model: ModelOption | None = Field(
        None,
        description="what the critic starts from, with a fresh scalar head: stage:NAME, a folder, or a hub id, with "
        "the policy's tokenizer. Default: the score model, or the backbone of the moderation model",
    )
    ranks: int = Field(
        1, ge=1, description="actors in the group; they share the scoring, and are the critic's world size"
    )
    resources: Resources = Field(default_factory=Resources, description="of one actor of the group")

    @model_validator(mode="after")
    def _role_and_limits_agree(self) -> "Signal":
        limits = [name for name in ("threshold", "unsafe_share") if getattr(self, name) is not None]
        if self.role != "constraint":
            foreign = [*limits, *(["constraint"] if self.constraint != Constraint() else [])]
            foreign += ["multiplier"] if self.multiplier is not None else []
            if foreign:
                article = "an" if self.role == "objective" else "a"
                raise ValueError(
                    f"{article} {self.role} has no {foreign[0]}: remove it, or make the signal a constraint"
                )
        if self.role == "monitor" and self.weight != 1.0:
            raise ValueError("a monitor has no weight: nothing is learned from it")
        if self.role == "constraint" and len(limits) != 1:
            raise ValueError("a constraint needs exactly one limit: threshold or unsafe_share")
        by_share = self.constraint.statistic == "share"
        if by_share and self.threshold is not None:
            raise ValueError("a share of unsafe responses is limited by unsafe_share: give it instead of threshold")
        if self.classifier is not None and self.threshold is None and not (self.unsafe_share and by_share):
            raise ValueError(
                "classifier gives a cost whose limit is a threshold, or an unsafe_share with constraint.statistic "
                "share: make it a constraint with one of them"
            )
        if self.model is None and self.unsafe_share is not None and not by_share:
            raise ValueError(
                f"{self.source} does not say the mean cost of safe and of unsafe responses, so unsafe_share has no "
                "threshold: state threshold instead, or limit the share itself with constraint.statistic share"
            )
        if self.role == "constraint" and self.weight != 1.0:
            raise ValueError("a constraint has no weight: its multiplier is its price")
        return self

    @property
    def scoring(self) -> Engine:
        """How the frozen model is asked: with the type and batch sizes under `critic`, or else the defaults."""
        return self.critic or Engine()

    @property
    def known_limit(self) -> float | None:
        """The limit of a constraint in the unit of its statistic; None: it follows from the cost model."""
        by_share = self.constraint.statistic == "share"
        return self.unsafe_share if by_share else self.threshold

    @property
    def measures(self) -> Measures:
        """What its judge gives."""
        return "cost" if self.role == "constraint" else "reward"

    @property
    def critic_start(self) -> ModelOption | None:
        """What a critic would start from; None: the config names nothing that could be."""
        return self.critic_model or self.model
