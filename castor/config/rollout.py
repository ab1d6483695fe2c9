"""How responses are sampled."""

from typing import Literal

from pydantic import Field

from castor.config.base import Section
from castor.config.training import Resources

CPU_KV_CACHE_MIB = 128  # where the config names no size

HeadType = Literal["model", "float32"]


class Rollout(Section):
    """Sampling from the policy with vLLM."""

    HOW = frozenset(
        (
            "workers",
            "engine",
            "chunk_size",
            "max_num_seqs",
            "kv_cache_mib",
            "gpu_memory_utilization",
            "tensor_parallel_size",
            "max_worker_restarts",
            "max_deadly_prompts",
            "timeout_s",
            "transfer",
            "transfer_timeout_s",
            "resources",
        )
    )

    workers: int = Field(1, ge=1, description="engines")
    engine: Literal["inproc", "async"] = Field(
        "inproc", description="vLLM inside the actor's process, or AsyncLLM with an engine process of its own"
    )
    max_prompt_tokens: int = Field(256, ge=1, description="longer prompts are dropped and counted")
    max_new_tokens: int = Field(512, ge=1, description="responses are cut here")
    temperature: float = Field(1.0, gt=0, description="log-probabilities are those of this tempered distribution")
    chunk_size: int = Field(16, ge=1, description="finished responses are handed on in chunks of this many")
    max_num_seqs: int = Field(128, ge=1, description="responses decoded at a time by one engine")
    kv_cache_mib: int | None = Field(
        None,
        ge=1,
        description="key-value cache of one engine (on each of its GPUs), MiB; null: what gpu_memory_utilization "
        "leaves, as measured at the start, and 128 on a CPU",
    )
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="share of a GPU's memory one engine may use")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs of one engine")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on GPUs, float32 on CPUs")
    head_dtype: HeadType = Field(
        "model",
        description="type of the logits in engine, learner and reference: that of the model, or float32 from the same "
        "weights, which brings a bfloat16 engine's log-probabilities closer to the learner's",
    )
    adapters: Literal["auto", "apart", "merged"] = Field(
        "auto",
        description="of a policy with lora. apart: engines hold model and adapter, and an update is the adapter; "
        "merged: engines hold their sum, as of any policy, and an update is the whole model; auto: merged on CPUs, "
        "where sampling through vLLM's adapters takes several times as long, else apart",
    )
    max_staleness: int = Field(
        0,
        ge=0,
        description="how many versions the weights that sampled a token may be behind those being updated. 0: sampling "
        "and learning take turns; k: the next k steps' responses are sampled while the learner works",
    )
    on_new_weights: Literal["finish", "continue"] = Field(
        "finish",
        description="with max_staleness over 0: responses being sampled when new weights arrive are finished on the "
        "old ones, or continue on the new",
    )
    max_worker_restarts: int = Field(
        3, ge=0, description="dead workers replaced before the run fails; those lost with their node do not count"
    )
    max_deadly_prompts: int = Field(
        8,
        ge=0,
        description="prompts set aside, as they kill the engines that sample them, before an RLHF run fails",
    )
    timeout_s: float = Field(
        600.0, gt=0, description="longest wait for one more response; the workers that owe it are stuck, and replaced"
    )
    transfer: Literal["auto", "host", "gloo", "nccl", "ipc"] = Field(
        "auto",
        description="how an RLHF run's weights reach its engines. host: through the node's memory, where an engine "
        "takes them when it comes to it; gloo, nccl: broadcast to all at once, between CPUs or between GPUs; ipc: "
        "copied within one GPU that all share; auto: nccl where learner and engines have GPUs of their own, ipc where "
        "the whole run has one GPU, unless engines finish their responses first; else host",
    )
    transfer_timeout_s: float = Field(
        120.0,
        gt=0,
        description="with gloo, nccl and ipc: an engine that takes longer for the next part of the weights is replaced",
    )
    resources: Resources = Field(default_factory=Resources, description="of one worker")
