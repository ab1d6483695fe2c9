"""The closing comparison."""

from pydantic import Field

from castor.config.base import Section
from castor.config.data import DataSource
from castor.config.model import ModelOption
from castor.config.rollout import Rollout
from castor.config.signal import Classifier
from castor.config.training import Resources


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
    cost: ModelOption = Field("stage:cost", description="cost model (with cost_classifier: moderation model)")
    cost_classifier: Classifier | None = Field(
        None, description="take the cost from a moderation model instead of a cost model"
    )
    rollout: Rollout = Field(default_factory=Rollout, description="sampling")
    resources: Resources = Field(default_factory=Resources, description="of one scorer")
