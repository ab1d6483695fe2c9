"""What all supervised stages share, and SFT."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from castor.config.base import Section
from castor.config.data import DataSource
from castor.config.model import ModelOption
from castor.config.training import Engine, LoRA, Resources


class Workers(Section):
    """An elastic number of workers: as many as the cluster has room for, within bounds."""

    min: int = Field(ge=1, description="with fewer than this the stage waits")
    max: int = Field(ge=1, description="never more than this")
    resize_s: float = Field(
        60.0, gt=0, description="how often a running stage looks whether more workers fit; a resize is a restart"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} exceeds max {self.max}: swap them")
        return self


class Best(Section):
    """Which of the evaluated models is kept."""

    metric: str = Field(description="name of a validation metric, e.g. accuracy or validation_loss")
    mode: Literal["max", "min"] = Field("max", description="whether more of it is better, or less")


class Supervised(Section):
    """One supervised stage on Ray Train with DeepSpeed."""

    HOW = frozenset(
        ("workers", "max_failures", "timeout_s", "resources", "checkpoint_every", "checkpoint_minutes",
         "keep_checkpoints")
    )  # fmt: skip

    model: ModelOption = Field("stage:model", description="what to start from: stage:NAME, a folder, or a hub id")
    data: list[DataSource] = Field(min_length=1, description="training rows; several sources are concatenated")
    validation_share: float = Field(
        0.05, gt=0, lt=1, description="share of the prompts held out from training to measure the stage"
    )
    epochs: float = Field(1.0, gt=0, description="passes over the rows; ignored where max_steps is given")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimiser steps")
    batch_size: int = Field(32, ge=1, description="rows (or pairs) of one optimiser step, over all workers")
    max_length: int = Field(512, ge=2, description="longest prompt + response in tokens; longer rows are dropped")
    eval_every: int | None = Field(None, ge=1, description="steps between validations; the last step always has one")
    best: Best | None = Field(None, description="keep the best validated model instead of the last; needs eval_every")
    patience: int | None = Field(
        None, ge=1, description="stop after this many validations in a row that were not the best; needs best"
    )
    lora: LoRA | None = Field(None, description="train low-rank adapters instead of all weights")
    max_skipped: int = Field(
        0, ge=0, description="batches whose loss or gradient is not finite that may be left out before the stage fails"
    )
    workers: int | Workers = Field(1, description="Ray Train workers: a number, or {min, max}")
    max_failures: int = Field(1, ge=0, description="restarts of the worker group, from its checkpoint, before failing")
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints")
    checkpoint_minutes: float | None = Field(10.0, gt=0, description="minutes between checkpoints")
    keep_checkpoints: int = Field(1, ge=1, description="newest checkpoints that are kept while the stage runs")
    timeout_s: float = Field(
        1800.0, gt=0, description="a worker that is stuck this long in a collective fails the stage"
    )
    engine: Engine = Field(default_factory=Engine, description="DeepSpeed and optimiser")
    resources: Resources = Field(default_factory=lambda: Resources(cpus=1), description="of one worker")

    @field_validator("data", mode="before")
    @classmethod
    def _one_source_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _keys_that_need_each_other(self) -> Self:
        if isinstance(self.workers, int) and self.workers < 1:
            raise ValueError(f"workers is {self.workers}: it must be 1 or more")
        if self.lora is not None and self.engine.trained_layers is not None:
            raise ValueError(
                "lora trains adapters in all layers, in place of them: remove it, or engine.trained_layers"
            )
        if self.best is not None and self.eval_every is None:
            raise ValueError("best needs eval_every: without it the last model is the only one that is measured")
        if self.patience is not None and self.best is None:
            raise ValueError("patience needs best: which metric has to improve?")
        return self

    @property
    def max_workers(self) -> int:
        """The number of workers, or the most of an elastic stage."""
        return self.workers.max if isinstance(self.workers, Workers) else self.workers

    @property
    def min_workers(self) -> int:
        """The number of workers, or the fewest of an elastic stage."""
        return self.workers.min if isinstance(self.workers, Workers) else self.workers


class SFT(Supervised):
    """Supervised fine-tuning on demonstrations."""

    train_on_prompt: bool = Field(False, description="also learn to predict the prompt (helps very small models)")
