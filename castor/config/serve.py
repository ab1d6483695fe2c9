"""Serving a finished run."""

from typing import Literal

from pydantic import Field

from castor.config.base import LocalPath, Section
from castor.config.cluster import RayCluster
from castor.config.signal import Classifier
from castor.config.training import Resources


class Serve(Section):
    """The policy of a run behind an OpenAI-compatible endpoint, and its score models behind `/v1/score`.

    Prompt format, models and trust in their code are those of the run's own config.
    """

    run_dir: LocalPath = Field(description="folder of the run")
    policy: str | None = Field(
        None,
        description="name of the stage whose policy is served; default: the last round's, else the only RLHF run, else "
        "the only one with constraints, else sft",
    )
    cost: str | None = Field(
        None,
        description="stage of the run whose cost model (with cost_classifier: moderation model) is served; default: "
        "the one the policy was trained against, or else the comparison's",
    )
    cost_classifier: Classifier | None = Field(
        None, description="take the cost of /v1/score from a moderation model; e.g. cost=qa cost_classifier.reduce=max"
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on GPUs, float32 on CPUs")
    max_model_len: int | None = Field(
        None, ge=2, description="longest prompt + response of the policy in tokens; default: its context"
    )
    max_num_seqs: int = Field(64, ge=1, description="responses decoded at a time by one replica of the policy")
    max_ongoing_requests: int = Field(
        256, ge=1, description="requests one replica holds at a time; further ones wait in front of it"
    )
    kv_cache_mib: int = Field(128, ge=1, description="key-value cache of one replica on a CPU, MiB")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="share of a GPU's memory one replica may use")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs of one replica")
    replicas: int = Field(1, ge=1, description="replicas of the policy")
    resources: Resources = Field(default_factory=Resources, description="of one replica of the policy")
    score_replicas: int = Field(1, ge=1, description="replicas of the score models; each holds reward and cost model")
    score_batch_tokens: int = Field(8192, ge=1, description="token budget of one forward pass of a score model")
    score_resources: Resources = Field(default_factory=Resources, description="of one replica of the score models")
    start_timeout_s: float = Field(900.0, gt=0, description="longest wait until every replica is up")
    ray: RayCluster = Field(default_factory=RayCluster, description="where Ray runs")
