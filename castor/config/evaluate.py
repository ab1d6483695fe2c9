"""The closing comparison."""

from pydantic import Field, model_validator

from castor.config.base import Section
from castor.config.data import DataSource
from castor.config.judge import Classifier, Judge, Measures
from castor.config.model import ModelOption
from castor.config.rollout import Rollout
from castor.config.training import Resources


class FurtherJudge(Judge):
    """A judge beside the reward and the cost model."""

    measures: Measures = Field(description="reward: more is better. cost: less is, and above zero means unsafe")


class Evaluate(Section):
    """The closing comparison on held-out prompts."""

    HOW = frozenset({"resources"})

    prompts: DataSource = Field(
        default_factory=lambda: DataSource(split="test", limit=512), description="held-out prompts"
    )
    policies: dict[str, ModelOption] | None = Field(
        None, description="name: stage:NAME or folder. Default: sft, every stage under dpo and every run under rlhf"
    )
    reward: ModelOption | None = Field(
        "stage:reward", description="reward model; null: none, helpfulness is then the gold judge's or is not measured"
    )
    cost: ModelOption | None = Field(
        "stage:cost", description="cost model (with cost_classifier: moderation model); null: none"
    )
    cost_classifier: Classifier | None = Field(
        None, description="take the cost from a moderation model instead of a cost model"
    )
    judges: dict[str, FurtherJudge] = Field(default_factory=dict, description="further judges, by name")
    constraints: bool = Field(
        True,
        description="every constraint of a compared run that none of these judges is about is judged by its own judge, "
        "too: whether its limit is kept is then known on the held-out prompts",
    )
    rollout: Rollout = Field(default_factory=Rollout, description="sampling")
    resources: Resources = Field(default_factory=Resources, description="of one scorer")

    @property
    def all_judges(self) -> dict[str, FurtherJudge]:
        """Every judge by name: `reward` and `cost` where there are such, then the further ones."""
        found = {}
        if self.reward is not None:
            found["reward"] = FurtherJudge(measures="reward", model=self.reward)
        if self.cost is not None:
            found["cost"] = FurtherJudge(measures="cost", model=self.cost, classifier=self.cost_classifier)
        return found | self.judges

    def judge_of(self, constraint: Judge) -> str | None:
        """The name of the judge that gives the cost that a constraint is about; None: there is none."""
        found = (name for name, each in self.all_judges.items() if each.measures == "cost" and each.gives(constraint))
        return next(found, None)

    @model_validator(mode="after")
    def _judges_are_told_apart(self) -> "Evaluate":
        for name, judge in self.judges.items():
            if name in ("reward", "cost"):
                raise ValueError(f"evaluate.{name} is the judge of that name: give judges.{name} another one")
            if judge.classifier is not None and judge.measures != "cost":
                raise ValueError(f"judges.{name}: a classifier gives a cost: set measures to cost")
        if self.cost is None and self.cost_classifier is not None:
            raise ValueError("cost_classifier makes a cost of a moderation model: set cost to that model")
        return self
