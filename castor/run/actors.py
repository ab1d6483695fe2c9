"""The actors a stage starts: read by the dry run, and by the code that starts them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line imports stages to name its commands; sections cost a quarter of a second
    from castor.config.model import ModelOption
    from castor.config.rollout import Rollout
    from castor.config.supervised import Supervised
    from castor.config.training import Engine, LoRA, Resources


@dataclass(frozen=True)
class Sampled:
    """A policy in a vLLM engine."""

    model: ModelOption
    rollout: Rollout


@dataclass(frozen=True)
class Trained:
    """A model under DeepSpeed: a language model, or with `score` a backbone with a head."""

    model: ModelOption
    engine: Engine
    ranks: int  # the fewest: the fewer there are, the more each holds
    score: bool
    lora: LoRA | None = None
    entropy: bool = False  # whether an entropy bonus is in the loss


@dataclass(frozen=True)
class Frozen:
    """A model that is only asked: a language model, or with `score` a backbone with a head."""

    model: ModelOption
    engine: Engine
    score: bool


@dataclass(frozen=True)
class Actors:
    """Actors that are alike: `count` of them, each with `resources`, each holding what `holds` names."""

    name: str
    count: int
    resources: Resources | None  # None: reserves nothing
    work: str  # what they are for, in words
    holds: tuple[Sampled | Trained | Frozen, ...] = field(default=())
    elastic: bool = False  # whether their number changes while they work
    take_turns: bool = False  # whether only one phase of a step has its models on the GPUs
    one_by_one: bool = False  # whether it lets go of one model before it loads the next

    @property
    def trains_together(self) -> bool:
        """Whether they are the ranks of one training group, which talk to each other all the time."""
        return not self.elastic and any(isinstance(held, Trained) for held in self.holds)

    @property
    def rank_names(self) -> list[str]:
        """A name for each of them."""
        return [f"{self.name}-{rank}" for rank in range(self.count)]


def rollout_workers(model: ModelOption, rollout: Rollout) -> Actors:
    """The actors of a rollout pool that starts with the weights of `model`."""
    parallel = f", tensor parallel {rollout.tensor_parallel_size}" if rollout.tensor_parallel_size > 1 else ""
    work = f"vLLM ({rollout.engine}){parallel}"
    return Actors("rollout", rollout.workers, rollout.resources, work, (Sampled(model, rollout),))


def train_workers(stage: Supervised, *, score: bool) -> Actors:
    """Ray Train's workers of a supervised stage, at the most; `score`: it trains a backbone with a head."""
    elastic = stage.min_workers < stage.max_workers
    work = f"trains, elastic from {stage.min_workers}" if elastic else "trains"
    held = Trained(stage.model, stage.engine, stage.min_workers, score, stage.lora)
    return Actors("RayTrainWorker", stage.max_workers, stage.resources, work, (held,), elastic)
