"""Preference data from a policy."""

from typing import Literal

from pydantic import Field, model_validator

from castor.config.assess import ChatServer
from castor.config.base import Section
from castor.config.data import DataSource
from castor.config.model import ModelOption
from castor.config.rollout import Rollout


class Collect(Section):
    """Preference data as in the papers: several responses per prompt from a policy, judged by an annotator."""

    policy: ModelOption = Field("stage:sft", description="policy to sample from")
    prompts: DataSource = Field(default_factory=lambda: DataSource(limit=2000), description="prompts")
    samples_per_prompt: int = Field(4, ge=2, description="responses per prompt")
    pairs_per_prompt: int = Field(3, ge=1, description="pairs kept per prompt, those that differ in helpfulness first")
    skip: int = Field(0, ge=0, description="prompts passed over at the beginning, such as those of an earlier run")
    annotator: Literal["simulated", "queue"] | ChatServer = Field(
        "simulated",
        description="who labels the pairs: simulated (the synthetic corpus only), queue (a person: the stage stops "
        "until the rows of queue.jsonl are labelled), or a language model: {url, model}",
    )
    rollout: Rollout = Field(default_factory=Rollout, description="sampling")

    @model_validator(mode="after")
    def _some_prompts_are_left(self) -> "Collect":
        if self.prompts.limit is not None and self.skip >= self.prompts.limit:
            raise ValueError(f"skip {self.skip} passes over all prompts.limit {self.prompts.limit} prompts: lower it")
        return self
