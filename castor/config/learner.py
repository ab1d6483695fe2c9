"""How the policy is updated."""

from typing import Literal

from pydantic import Field

from castor.config.base import Section
from castor.config.data import DataSource
from castor.config.training import Engine, Optimizer, Resources


class PTX(Section):
    """A language-model loss on demonstrations, mixed into every policy update."""

    data: DataSource = Field(default_factory=DataSource, description="demonstrations")
    ptx_coeff: float = Field(16.0, gt=0, description="its weight")
    batch_size: int = Field(16, ge=1, description="demonstrations of one policy update, over all ranks")


class Learner(Section):
    """The policy's update."""

    HOW = frozenset(
        (
            "ranks",
            "logprob_gap_alarm",
            "max_skipped",
            "timeout_s",
            "rejoin_s",
            "resources",
        )
    )

    ranks: int = Field(1, ge=1, description="SPMD world size")
    engine: Engine = Field(
        default_factory=lambda: Engine(optimizer=Optimizer(lr=1e-5)), description="DeepSpeed and optimiser"
    )
    clip_range_ratio: float = Field(0.2, gt=0, lt=1, description="clip range of the probability ratio, both ways")
    clip_range_low: float | None = Field(
        None, gt=0, lt=1, description="another range below 1 (asymmetric clip); null: clip_range_ratio"
    )
    clip_range_high: float | None = Field(None, gt=0, description="another range above 1; null: clip_range_ratio")
    dual_clip: float | None = Field(
        None,
        gt=1,
        description="negative advantages: the loss is at most this times |A| (Ye et al. 2020); null: no limit",
    )
    entropy_coeff: float = Field(
        0.0, ge=0, description="weight of an entropy bonus, exact over the vocabulary (one more softmax a token)"
    )
    old_logprobs: Literal["auto", "rollout", "learner"] = Field(
        "auto",
        description="PPO's old log-probabilities, which ratio and clip are taken against. rollout: those the engine "
        "sampled with; learner: the learner's own before the step's first update, each token weighted by the ratio to "
        "the engine's, which corrects where the two compute differently. auto: learner on GPUs and with "
        "rollout.max_staleness over 0, else rollout",
    )
    importance_cap: float = Field(
        2.0,
        ge=1,
        description="with old_logprobs from the learner: a token's loss is weighted by the ratio of its probability "
        "before the step's updates to that it was sampled with, truncated here",
    )
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
    max_skipped: int = Field(
        3,
        ge=0,
        description="steps in a row with a gradient that was not finite, which is left out, before the run goes back "
        "to its newest checkpoint and on with other samples and mini-batches",
    )
    timeout_s: float = Field(
        600.0, gt=0, description="a rank stuck this long in a collective, or a step, fails the run"
    )
    rejoin_s: float = Field(
        300.0,
        ge=0,
        description="how long ranks of a lost node may take to be placed again before a group of the run goes on with "
        "fewer; with all of them again from the next checkpoint on after they have come back",
    )
    resources: Resources = Field(default_factory=Resources, description="of one rank")

    @property
    def clip_range(self) -> tuple[float, float]:
        """How far the probability ratio may fall below 1, and rise above it."""
        both = self.clip_range_ratio
        return self.clip_range_low or both, self.clip_range_high or both
