"""One RLHF run. Which method it is follows from the signals it lists and the multiplier rule it names."""

from typing import Literal

from pydantic import Field, model_validator

from castor.config.base import Section
from castor.config.data import DataSource
from castor.config.training import Engine, Optimizer, Resources


class Reference(Section):
    """The frozen starting point of the policy."""

    ranks: int = Field(1, ge=1, description="actors; each holds the whole model, and they share the responses")
    resources: Resources = Field(default_factory=Resources, description="of one actor")


class Policy(Section):
    """The model being trained, and its frozen starting point, the reference."""

    model: str = Field("stage:sft", description="stage:NAME, a folder, or a hub id")
    trust_remote_code: bool = Field(False, description="run model code shipped with a hub checkpoint")
    reference: Reference = Field(default_factory=Reference, description="the frozen starting point")


class Signal(Section):
    """One judge of a finished response: a frozen score model and a critic that predicts its return."""

    role: Literal["objective", "constraint"] = Field(description="maximise it, or keep its mean at or under a limit")
    model: str = Field(description="score model: stage:NAME or a folder")
    weight: float = Field(1.0, gt=0, description="objectives only: weight in the sum of objectives")
    threshold: float | None = Field(None, description="constraints only: mean cost must stay at or under it (-d)")
    unsafe_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="constraints only, instead of threshold: the mean cost of a policy with this share of unsafe "
        "responses, safe_mean + share * (unsafe_mean - safe_mean), with the means stored in the cost model's folder",
    )
    critic: Engine = Field(
        default_factory=lambda: Engine(optimizer=Optimizer(lr=5e-6, lr_scheduler_type="constant")),
        description="how the critic, which starts from the score model, is trained",
    )
    ranks: int = Field(
        1, ge=1, description="actors in the group; they share the scoring, and are the critic's world size"
    )
    resources: Resources = Field(default_factory=Resources, description="of one actor of the group")

    @model_validator(mode="after")
    def _role_and_limits_agree(self) -> "Signal":
        limits = [name for name in ("threshold", "unsafe_share") if getattr(self, name) is not None]
        if self.role == "objective" and limits:
            raise ValueError(f"an objective has no {limits[0]}: remove it, or make the signal a constraint")
        if self.role == "constraint" and len(limits) != 1:
            raise ValueError("a constraint needs exactly one limit: threshold or unsafe_share")
        if self.role == "constraint" and self.weight != 1.0:
            raise ValueError("a constraint has no weight: its multiplier is its price")
        return self


class Multipliers(Section):
    """The rule that prices the constraints, one multiplier per constraint. PKU's names."""

    rule: Literal["sgd_log"] = Field("sgd_log", description="gradient ascent on log λ (Safe RLHF eq. 31)")
    lambda_init: float = Field(1.0, gt=0, description="λ at the start")
    lambda_lr: float = Field(0.1, gt=0, description="step size on log λ")
    lambda_max: float | None = Field(5.0, gt=0, description="upper limit of λ")
    lambda_update_delay_steps: int = Field(0, ge=0, description="steps before the first update of λ")
    episode_cost_window_size: int = Field(
        128, ge=1, description="responses over which the mean cost is taken, over all ranks"
    )

    @model_validator(mode="after")
    def _limits_are_ordered(self) -> "Multipliers":
        if self.lambda_max is not None and self.lambda_max < self.lambda_init:
            raise ValueError(
                f"lambda_max ({self.lambda_max:g}) is below lambda_init ({self.lambda_init:g}): "
                "raise one or lower the other"
            )
        return self


class Advantage(Section):
    """From scores to advantages."""

    estimator: Literal["gae"] = Field("gae", description="one critic per signal, generalised advantage estimation")
    gamma: float = Field(1.0, gt=0, le=1, description="discount")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ of GAE")
    kl_coeff: float = Field(0.02, ge=0, description="weight of the per-token KL penalty, in full on every stream")
    clip_range_score: float = Field(
        50.0, gt=0, description="per-token rewards and costs are clamped to ± this, KL included"
    )
    clip_range_value: float = Field(5.0, gt=0, description="clip range of the critics' loss")


class Rollout(Section):
    """Sampling from the policy with vLLM."""

    workers: int = Field(1, ge=1, description="engines")
    engine: Literal["inproc", "async"] = Field(
        "inproc", description="vLLM inside the actor's process, or AsyncLLM with an engine process of its own"
    )
    max_prompt_tokens: int = Field(256, ge=1, description="longer prompts are dropped and counted")
    max_new_tokens: int = Field(512, ge=1, description="responses are cut here")
    temperature: float = Field(1.0, gt=0, description="log-probabilities are those of this tempered distribution")
    chunk_size: int = Field(16, ge=1, description="finished responses are handed on in chunks of this many")
    max_num_seqs: int = Field(128, ge=1, description="responses decoded at a time by one engine")
    kv_cache_mib: int = Field(128, ge=1, description="key-value cache of one engine on a CPU, MiB")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="share of a GPU's memory one engine may use")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs of one engine")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on GPUs, float32 on CPUs")
    max_staleness: Literal[0] = Field(0, description="0: every response comes from the newest weights")
    max_worker_restarts: int = Field(3, ge=0, description="dead workers replaced before the run fails")
    timeout_s: float = Field(600.0, gt=0, description="longest wait for one more response before the run fails")
    resources: Resources = Field(default_factory=Resources, description="of one worker")


class PTX(Section):
    """A language-model loss on demonstrations, mixed into every policy update."""

    data: DataSource = Field(default_factory=DataSource, description="demonstrations")
    ptx_coeff: float = Field(16.0, gt=0, description="its weight")
    batch_size: int = Field(16, ge=1, description="demonstrations of one policy update, over all ranks")


class Learner(Section):
    """The policy's update."""

    ranks: int = Field(1, ge=1, description="SPMD world size")
    engine: Engine = Field(
        default_factory=lambda: Engine(optimizer=Optimizer(lr=1e-5)), description="DeepSpeed and optimiser"
    )
    clip_range_ratio: float = Field(0.2, gt=0, lt=1, description="clip range of the probability ratio")
    update_iters: int = Field(1, ge=1, description="passes over the experience of a step")
    mini_batches: int = Field(1, ge=1, description="optimiser steps in one pass")
    loss_normalization: Literal["sequence", "token"] = Field(
        "sequence",
        description="mean over tokens in a response, then over responses (PKU), or over all tokens of the batch",
    )
    ptx: PTX | None = Field(None, description="language-model loss mixed in")
    logprob_gap_alarm: float = Field(
        0.1,
        gt=0,
        description="the run stops when the mean |learner - rollout| log-probability gap of a batch exceeds this",
    )
    timeout_s: float = Field(
        600.0, gt=0, description="a rank stuck this long in a collective, or a step, fails the run"
    )
    resources: Resources = Field(default_factory=Resources, description="of one rank")


class RLHF(Section):
    """One run of the RLHF loop."""

    steps: int = Field(ge=1, description="policy updates")
    prompts: DataSource = Field(default_factory=DataSource, description="prompts to sample from")
    prompts_per_step: int = Field(64, ge=1, description="prompts of one step")
    samples_per_prompt: int = Field(1, ge=1, description="responses sampled to each prompt")
    policy: Policy = Field(default_factory=Policy, description="policy and reference")
    signals: dict[str, Signal] = Field(min_length=1, description="the judges, by name")
    multipliers: Multipliers | None = Field(None, description="required with constraints, and only then")
    advantage: Advantage = Field(default_factory=Advantage, description="from scores to advantages")
    rollout: Rollout = Field(default_factory=Rollout, description="sampling")
    learner: Learner = Field(default_factory=Learner, description="the policy's update")

    @property
    def constraints(self) -> dict[str, Signal]:
        """The signals that are constraints, in the config's order."""
        return {name: signal for name, signal in self.signals.items() if signal.role == "constraint"}

    @model_validator(mode="after")
    def _parts_agree(self) -> "RLHF":
        if len(self.constraints) == len(self.signals):
            raise ValueError("no objective among the signals: give at least one the role 'objective'")
        if self.constraints and self.multipliers is None:
            raise ValueError(f"constraint {next(iter(self.constraints))!r} has no price: add a multipliers section")
        if self.multipliers is not None and not self.constraints:
            raise ValueError("multipliers without a constraint: set multipliers to null, or add a constraint")
        responses = self.prompts_per_step * self.samples_per_prompt
        pieces = self.learner.ranks * self.learner.mini_batches
        if responses % pieces:
            raise ValueError(
                f"{responses} responses a step (prompts_per_step x samples_per_prompt) cannot be divided into "
                f"{self.learner.mini_batches} mini-batches over {self.learner.ranks} ranks: "
                f"make them a multiple of {pieces}"
            )
        return self
