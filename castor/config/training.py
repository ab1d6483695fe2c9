"""Options shared by everything that trains: the optimiser and the DeepSpeed engine around a model."""

from typing import Literal

from pydantic import Field

from castor.config.base import Section


class Resources(Section):
    """What one actor asks of Ray. With `gpus: 0` it computes on the CPU with `threads` threads."""

    cpus: float = Field(
        0.25, ge=0, description="logical CPUs to reserve; a fraction lets several actors share a laptop"
    )
    gpus: float = Field(0, ge=0, description="GPUs to reserve; a fraction shares one")
    custom: dict[str, float] = Field(
        default_factory=dict, description="custom resources, e.g. {rollout: 1}: placed on nodes that offer them"
    )
    threads: int = Field(1, ge=1, description="torch and OpenMP threads of the actor on a CPU")


class Optimizer(Section):
    """AdamW with a warm-up and a decay."""

    lr: float = Field(1e-5, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW betas")
    eps: float = Field(1e-8, gt=0, description="AdamW epsilon")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (not applied to biases and norms)")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field("cosine", description="decay after the warm-up")
    lr_warmup_ratio: float = Field(0.03, ge=0, lt=1, description="share of the steps spent warming up")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this global norm")


class Engine(Section):
    """How a model is trained: DeepSpeed stage, precision, size of a micro-batch. The engine config is derived."""

    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="ZeRO stage")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on GPUs, float32 on CPUs (bfloat16 is many times slower on most CPUs)"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    micro_batch_tokens: int = Field(8192, ge=1, description="token budget of one forward/backward")
    pack_length: int = Field(
        512,
        ge=1,
        description="sequences are packed into rows of at most this many tokens (or the longest sequence); "
        "without a varlen attention kernel the cost of attention grows with it",
    )
    optimizer: Optimizer = Field(default_factory=Optimizer, description="the optimiser")
