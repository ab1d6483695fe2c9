"""The whole config file: one section per stage."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from castor.config.base import Section
from castor.config.data import DataSource
from castor.config.moderation import Moderation
from castor.config.preference import Cost, Reward
from castor.config.rlhf import RLHF, Rollout
from castor.config.supervised import SFT
from castor.config.template import PromptFormat
from castor.config.training import Resources


class DemoModel(Section):
    """A small Llama with a tokenizer trained on the training text, both made on the spot."""

    data: list[DataSource] = Field(
        default_factory=lambda: [DataSource(limit=12000)], description="text to train the tokenizer on"
    )
    tokenizer: Literal["word", "bpe"] = Field("word", description="whole words, or byte-level BPE (any text)")
    vocab_size: int = Field(1024, ge=64, description="most entries of the vocabulary")
    hidden_size: int = Field(192, ge=8, description="width")
    layers: int = Field(2, ge=1, description="decoder layers")
    heads: int = Field(4, ge=1, description="attention heads")
    intermediate_size: int = Field(512, ge=8, description="width of the MLP")
    max_position_embeddings: int = Field(256, ge=16, description="context length in tokens")
    initializer_range: float = Field(0.08, gt=0, description="standard deviation of the initial weights")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "DemoModel":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} is not an even multiple of heads {self.heads}")
        return self

    @field_validator("data", mode="before")
    @classmethod
    def _one_source_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, dict) else value


class Collect(Section):
    """Preference data as in the papers: several responses per prompt from a policy, judged by an annotator."""

    policy: str = Field("stage:sft", description="policy to sample from")
    prompts: DataSource = Field(default_factory=lambda: DataSource(limit=2000), description="prompts")
    samples_per_prompt: int = Field(4, ge=2, description="responses per prompt")
    pairs_per_prompt: int = Field(3, ge=1, description="pairs kept per prompt, those that differ in helpfulness first")
    rollout: Rollout = Field(default_factory=Rollout, description="sampling")


class Evaluate(Section):
    """The closing comparison on held-out prompts."""

    prompts: DataSource = Field(
        default_factory=lambda: DataSource(split="test", limit=512), description="held-out prompts"
    )
    policies: dict[str, str] | None = Field(
        None, description="name: stage:NAME or folder. Default: sft and every run under rlhf"
    )
    reward: str = Field("stage:reward", description="reward model")
    cost: str = Field("stage:cost", description="cost model")
    rollout: Rollout = Field(default_factory=Rollout, description="sampling")
    resources: Resources = Field(default_factory=Resources, description="of one scorer")


class Hardware(Section):
    """What a cluster offers. Only `--dry-run` reads it: it says whether the plan fits."""

    nodes: int = Field(1, ge=1, description="nodes with GPUs")
    gpus_per_node: int = Field(8, ge=1, description="GPUs of each of them")
    gpu_memory_gib: float = Field(79.0, gt=0, description="memory of one GPU that programs can use, GiB")


class RayCluster(Section):
    """Where Ray runs."""

    address: str | None = Field(
        None,
        description="of a running cluster; by default the one this process belongs to (RAY_ADDRESS), else "
        "one is started",
    )
    num_cpus: int | None = Field(None, ge=1, description="of a cluster that is started here; default: all cores")
    hardware: Hardware | None = Field(None, description="GPUs of the cluster, to compare the plan with")
    object_store_mib: int = Field(256, ge=80, description="object store of a cluster that is started here, MiB")


class WandB(Section):
    """Weights & Biases. Without an account the run is kept offline beside the results."""

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online where an API key is configured, offline otherwise"
    )
    project: str = Field("castor", description="project")
    entity: str | None = Field(None, description="team or user")


class Config(Section):
    """One config file. Sections that are absent are stages that do not exist in this run."""

    run_dir: Path = Field(Path("runs/run"), description="where everything this run makes is kept")
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
    rlhf: dict[str, RLHF] = Field(default_factory=dict, description="RLHF runs, by name")
    evaluate: Evaluate | None = Field(None, description="comparison of the policies")
    ray: RayCluster = Field(default_factory=RayCluster, description="where Ray runs")
    wandb: WandB = Field(default_factory=WandB, description="experiment tracking")

    @model_validator(mode="after")
    def _names_are_folders(self) -> "Config":
        taken = {"model", "sft", "collect", "reward", "cost", "evaluate", "logs", "wandb", "ray_train"}
        for kind, names in (("moderation model", self.moderation), ("rlhf run", self.rlhf)):
            for name in names:
                if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in taken:
                    raise ValueError(
                        f"{kind} {name!r} cannot name a folder of the run: use letters, digits, _ and -, and no name "
                        "that a stage has"
                    )
            taken |= names.keys()
        return self
