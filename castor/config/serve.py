"""Serving trained models: policies, their judges, the guard and the gateway in front of them."""

from typing import Any, Literal

from pydantic import Field, model_validator

from castor.config.base import LocalPath, Section
from castor.config.cluster import RayCluster
from castor.config.gateway import Gateway
from castor.config.guard import Guard
from castor.config.judge import Classifier
from castor.config.model import ModelOption
from castor.config.replicas import Replicated
from castor.config.template import PromptFormat
from castor.config.training import Resources


class Replicas(Replicated):
    """How many replicas of a deployment there are, and what one of them reserves."""

    max_ongoing_requests: int = Field(
        256, ge=1, description="requests one replica holds at a time; further ones wait in front of it"
    )
    resources: Resources = Field(default_factory=Resources, description="of one replica")


class Policy(Replicas):
    """One served policy and its vLLM engine."""

    model: ModelOption | None = Field(
        None, description="stage:NAME of the run, a folder, or a hub id; default: the stage of this policy's name"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on GPUs, float32 on CPUs")
    max_model_len: int | None = Field(
        None, ge=2, description="longest prompt + response in tokens; default: the model's context"
    )
    max_num_seqs: int = Field(64, ge=1, description="responses decoded at a time by one replica")
    kv_cache_mib: int | None = Field(
        None,
        ge=1,
        description="key-value cache of one replica (on each of its GPUs), MiB; null: what gpu_memory_utilization "
        "leaves, as measured at the start, and 128 on a CPU",
    )
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="share of a GPU's memory one replica may use")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs of one replica")
    longest_pause_s: float = Field(
        0.4, ge=0, description="between two parts of a stream while many are under way; a single one has no pauses"
    )
    guard: Guard | None = Field(None, description="of this policy; default: the common one")


class Judges(Replicas):
    """What judges answers: a cost and a reward model, a moderation model. A replica holds all of them."""

    cost: ModelOption | None = Field(
        None, description="cost model (with cost_classifier: moderation model): stage:NAME, a folder, or a hub id; "
        "default: the one the policy was trained against, or else the comparison's"
    )  # fmt: skip
    cost_classifier: Classifier | None = Field(
        None, description="take the cost from a moderation model; e.g. cost=stage:qa cost_classifier.reduce=max"
    )
    reward: ModelOption | None = Field(None, description="reward model; default: as for cost")
    moderation: ModelOption | None = Field(
        None, description="moderation model of question-answer pairs; default: the run's only one, if it has one"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on GPUs, float32 on CPUs")
    batch_tokens: int = Field(8192, ge=1, description="token budget of one forward pass")
    kv_cache_mib: int = Field(
        1024, ge=0, description="memory of each model for the keys and values of streamed answers, so that a window "
        "is judged without those before it being read again; the answers judged last stay; while it judges it takes up "
        "to as much again; 0: none is kept"
    )  # fmt: skip


class Serve(Section):
    """Policies behind an OpenAI-compatible, guarded endpoint, and their judges as services.

    Prompt format, models and trust in their code are those of the run's own config.
    """

    run_dir: LocalPath | None = Field(None, description="folder of a finished run, which stage:NAME refers to")
    template: PromptFormat | None = Field(
        None, description="prompt format of all models; default: the run's, else auto"
    )
    policies: dict[str, Policy] = Field(
        default_factory=dict, description="by the name clients ask for; default: the last round's policy, else that of "
        "the only RLHF run, else of the only one with constraints, else sft. A list of stage names will do, too"
    )  # fmt: skip
    engine: Policy = Field(
        default_factory=Policy, description="what holds for every policy that does not say otherwise"
    )
    judges: Judges = Field(default_factory=Judges, description="reward, cost and moderation model")
    guard: Guard = Field(default_factory=Guard, description="what of an answer reaches the client")
    gateway: Gateway = Field(default_factory=Gateway, description="where it listens, and who may ask")
    start_timeout_s: float = Field(900.0, gt=0, description="longest wait until every replica is up")
    ray: RayCluster = Field(default_factory=RayCluster, description="where Ray runs")

    @model_validator(mode="before")
    @classmethod
    def _names_alone(cls, values: Any) -> Any:
        """A list of policies is one of stages; what `engine` says holds for all that do not say otherwise."""
        if not isinstance(values, dict):
            return values
        policies = values.get("policies")
        if isinstance(policies, list) and all(isinstance(name, str) for name in policies):
            values = values | {"policies": {name: {} for name in policies}}
        return values

    @model_validator(mode="after")
    def _has_policies(self) -> "Serve":
        if self.run_dir is None and not self.policies:
            raise ValueError("give run_dir, or policies with a model each")
        if self.engine.model is not None:
            raise ValueError("engine.model would be the model of every policy: give policies.NAME.model")
        return self

    def policy(self, name: str) -> Policy:
        """The options of a policy: its own, and of those it does not set the common ones."""
        own = self.policies.get(name, Policy())
        return self.engine.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})

    def guard_of(self, name: str) -> Guard:
        """The guard of a policy."""
        return self.policy(name).guard or self.guard
