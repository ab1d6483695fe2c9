"""The whole config file: one section per stage."""

import re
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from castor.config.base import LocalPath, Section
from castor.config.cluster import RayCluster
from castor.config.collect import Collect
from castor.config.demo_model import DemoModel
from castor.config.dpo import DPO
from castor.config.evaluate import Evaluate
from castor.config.moderation import Moderation
from castor.config.preference import Cost, Reward
from castor.config.rlhf import RLHF
from castor.config.rounds import Rounds
from castor.config.supervised import SFT
from castor.config.template import PromptFormat
from castor.config.trackers import MLflow, TensorBoard
from castor.config.wandb import WandB


class Config(Section):
    """One config file. Sections that are absent are stages that do not exist in this run."""

    run_dir: LocalPath = Field(Path("runs/run"), description="where everything this run makes is kept")
    seed: int = Field(0, ge=0, description="every random choice follows from it")
    template: PromptFormat = Field(
        "auto",
        description="prompt format: the tokenizer's chat template, PKU's fixed one (auto: chat if there is one), or a "
        "text that holds {prompt}; in a conversation that text is repeated for each turn",
    )
    model: DemoModel | None = Field(None, description="make a small model on the spot")
    sft: SFT | None = Field(None, description="supervised fine-tuning")
    collect: Collect | None = Field(None, description="preference data from the SFT policy")
    reward: Reward | None = Field(None, description="reward model")
    cost: Cost | None = Field(None, description="cost model")
    moderation: dict[str, Moderation] = Field(default_factory=dict, description="moderation models, by name")
    dpo: dict[str, DPO] = Field(default_factory=dict, description="policies from preference rows alone, by name")
    rlhf: dict[str, RLHF] = Field(default_factory=dict, description="RLHF runs, by name")
    rounds: Rounds | None = Field(None, description="several rounds of collect, reward, cost and the one rlhf run")
    evaluate: Evaluate | None = Field(None, description="comparison of the policies")
    ray: RayCluster = Field(default_factory=RayCluster, description="where Ray runs")
    wandb: WandB = Field(default_factory=WandB, description="experiment tracking")
    tensorboard: TensorBoard | None = Field(None, description="experiment tracking in event files, too")
    mlflow: MLflow | None = Field(None, description="experiment tracking with MLflow, too")

    @field_validator("rounds", mode="before")
    @classmethod
    def _number_of_rounds(cls, value: object) -> object:
        return {"count": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _rounds_have_their_stages(self) -> "Config":
        if self.rounds is None:
            return self
        if len(self.rlhf) != 1:
            raise ValueError(f"rounds continue the policy of one rlhf run, and the config has {len(self.rlhf)}")
        for name in ("collect", "reward", "cost"):
            if getattr(self, name) is None:
                raise ValueError(f"rounds repeat the stages collect, reward and cost: add a {name} section")
        assert self.collect is not None
        if self.collect.prompts.limit is None or self.collect.prompts.proportion < 1:
            raise ValueError(
                "every round takes the next collect.prompts.limit prompts: give a limit, and no proportion"
            )
        for name in ("reward", "cost"):
            if all(source.source != "stage:collect" for source in getattr(self, name).data):
                raise ValueError(f"rounds label new rows for {name}: add the source stage:collect to {name}.data")
        for name in (*self.moderation, *self.dpo, *self.rlhf):
            if re.fullmatch(r"round-\d+|unified", name):
                raise ValueError(f"{name!r} names a folder of the rounds: choose another name")
        return self
