"""Options shared by everything that trains: the optimiser and the DeepSpeed engine around a model."""

from typing import Literal, Self

from pydantic import Field, model_validator

from castor.config.base import Section

REDUCE_BUCKET = 500_000_000  # elements of ZeRO's gradient buffer at most: DeepSpeed's own default
LOGITS = 1 << 27  # of one chunk unless a config says otherwise: 512 MiB in float32


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


class Offload(Section):
    """What ZeRO keeps in the node's memory instead of the GPU's. AdamW then runs on the CPU too."""

    optimizer: Literal["none", "cpu"] = Field("none", description="optimiser states and fp32 weights; zero_stage >= 1")
    parameters: Literal["none", "cpu"] = Field("none", description="weights between their uses; zero_stage 3")


class LoRA(Section):
    """Low-rank adapters (Hu et al. 2021): W + alpha / rank · B A, of which only A and B are trained."""

    rank: int = Field(16, ge=1, description="columns of B and rows of A")
    alpha: float = Field(32.0, gt=0, description="the adapter is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    target_modules: list[str] | None = Field(
        None, min_length=1, description="names of the linear layers that get an adapter; default: all but the head"
    )


class Engine(Section):
    """How a model is trained: DeepSpeed stage, precision, size of a micro-batch. The engine config is derived."""

    HOW = frozenset(
        (
            "zero_stage",
            "offload",
            "gradient_checkpointing",
            "micro_batch_tokens",
            "pack_length",
            "logits_chunk_tokens",
        )
    )

    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="ZeRO stage; in bfloat16 stages 1 to 3 sum gradients in float32, stage 0 in bfloat16"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="auto: bfloat16 on GPUs, float32 on CPUs (where bfloat16 is faster with AVX512-BF16 or AMX, and "
        "many times slower without)",
    )
    offload: Offload = Field(default_factory=Offload, description="what is kept out of the GPU's memory")
    trained_layers: int | None = Field(
        None,
        ge=0,
        description="train only the last so many layers and what comes behind them, a score head included; embeddings "
        "and a vocabulary's head stay frozen. 0: heads alone. null: everything",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    micro_batch_tokens: int = Field(8192, ge=1, description="token budget of one forward/backward")
    pack_length: int = Field(
        512,
        ge=1,
        description="sequences are packed into rows of at most this many tokens (or the longest sequence); on a CPU, "
        "where the cost of attention grows with the row, into narrower ones where these cost less",
    )
    logits_chunk_tokens: int | None = Field(
        None,
        ge=1,
        description="a policy makes the logits of this many tokens at a time, in the backward pass once more; null: as "
        "many as 2^27 logits are (1,046 tokens of a vocabulary of 128,256), all at once where they are fewer",
    )
    optimizer: Optimizer = Field(default_factory=Optimizer, description="the optimiser")

    def chunk_tokens(self, vocabulary: int) -> int:
        """Tokens whose logits are held at a time."""
        return self.logits_chunk_tokens or max(1, LOGITS // vocabulary)

    @model_validator(mode="after")
    def _offload_needs_sharding(self) -> Self:
        for what, stage in (("optimizer", 1), ("parameters", 3)):
            if getattr(self.offload, what) != "none" and self.zero_stage < stage:
                raise ValueError(
                    f"offload.{what} needs zero_stage {stage} or higher, and zero_stage is {self.zero_stage}"
                )
        return self
