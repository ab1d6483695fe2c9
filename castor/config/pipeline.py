"""The whole config file: one section per stage."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from castor.config.assess import ChatServer
from castor.config.base import Section
from castor.config.data import DataSource
from castor.config.dpo import DPO
from castor.config.moderation import Moderation
from castor.config.preference import Cost, Reward
from castor.config.rlhf import RLHF, Rollout
from castor.config.signal import Classifier
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


class Rounds(Section):
    """Safe RLHF in rounds: collect, reward, cost and the rlhf run once a round, each from where the last one ended."""

    count: int = Field(ge=1, description="rounds; or give the number in place of the section")
    changes: dict[int, dict[str, Any]] = Field(
        default_factory=dict,
        description="options that differ in a round, by its number: {2: {rlhf.NAME.multipliers.lambda_init: 0.5}}",
    )
    unified: bool = Field(
        True,
        description="after the last round, train a reward and a cost model on the rows of all rounds, from other "
        "random numbers, that only judge the policies; otherwise those of the last round do",
    )


class Evaluate(Section):
    """The closing comparison on held-out prompts."""

    prompts: DataSource = Field(
        default_factory=lambda: DataSource(split="test", limit=512), description="held-out prompts"
    )
    policies: dict[str, str] | None = Field(
        None, description="name: stage:NAME or folder. Default: sft, every stage under dpo and every run under rlhf"
    )
    reward: str = Field("stage:reward", description="reward model")
    cost: str = Field("stage:cost", description="cost model (with cost_classifier: moderation model)")
    cost_classifier: Classifier | None = Field(
        None, description="take the cost from a moderation model instead of a cost model"
    )
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
    dpo: dict[str, DPO] = Field(default_factory=dict, description="policies from preference rows alone, by name")
    rlhf: dict[str, RLHF] = Field(default_factory=dict, description="RLHF runs, by name")
    rounds: Rounds | None = Field(None, description="several rounds of collect, reward, cost and the one rlhf run")
    evaluate: Evaluate | None = Field(None, description="comparison of the policies")
    ray: RayCluster = Field(default_factory=RayCluster, description="where Ray runs")
    wandb: WandB = Field(default_factory=WandB, description="experiment tracking")

    @model_validator(mode="after")
    def _names_are_folders(self) -> "Config":
        taken = {"model", "sft", "collect", "reward", "cost", "evaluate", "logs", "wandb", "ray_train"}
        kinds: dict[str, Iterable[str]] = {
            "moderation model": self.moderation,
            "dpo stage": self.dpo,
            "rlhf run": self.rlhf,
        }
        for kind, names in kinds.items():
            for name in names:
                if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in taken:
                    raise ValueError(
                        f"{kind} {name!r} cannot name a folder of the run: use letters, digits, _ and -, and no name "
                        "that a stage has"
                    )
            taken |= set(names)
        return self

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
