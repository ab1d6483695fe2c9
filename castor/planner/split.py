"""A split of GPUs among the groups of a run, as keys of its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from castor.config.rlhf import RLHF

LEARNER_SHARE, REFERENCE_SHARE = 0.49, 0.51  # two shares of the latter find no room on one GPU
STALENESS = (0, 1, 2)
CHUNKS = (1, 8)  # times the config's: larger ones wait longer to be judged, and fewer passes judge them


@dataclass(frozen=True)
class Split:
    """Ranks of every group. In turns (`colocate`) all of them are on the same GPUs."""

    rollout: int  # engines
    learner: int
    signals: int  # of each signal that has a model
    reference: int  # 0: the learner answers for it
    beside: bool  # the reference shares the learner's GPUs
    colocate: bool
    staleness: int
    critics_offload: bool
    chunk: int  # responses that are judged together

    @property
    def mode(self) -> tuple[bool, int]:
        """Splits of one mode are compared with each other."""
        return self.colocate, self.staleness

    def keys(self, run: RLHF) -> dict[str, Any]:
        """The options of the run's section that make it so, by dotted name."""
        parallel = run.rollout.tensor_parallel_size
        judges = [name for name, signal in run.signals.items() if signal.model is not None]
        groups = 2 + len(judges) + bool(self.reference)
        turns = int(100 / groups) / 100
        learner = LEARNER_SHARE if self.beside else 1
        keys: dict[str, Any] = {
            "colocate": self.colocate,
            "rollout.workers": self.rollout,
            "rollout.resources.gpus": turns if self.colocate else parallel,
            "rollout.max_staleness": self.staleness,
            "rollout.chunk_size": self.chunk,
            "learner.ranks": self.learner,
            "learner.resources.gpus": turns if self.colocate else learner,
        }
        if self.reference:
            share = REFERENCE_SHARE if self.beside else 1
            keys["policy.reference.ranks"] = self.reference
            keys["policy.reference.resources.gpus"] = turns if self.colocate else share
        if self.colocate:
            keys |= {"learner.engine.zero_stage": 2, "learner.engine.offload.optimizer": "none"}
        for name in judges:
            keys[f"signals.{name}.ranks"] = self.signals
            keys[f"signals.{name}.resources.gpus"] = turns if self.colocate else 1
            if run.has_critic(name):
                keys[f"signals.{name}.critic.offload.optimizer"] = "cpu" if self.critics_offload else "none"
                if self.colocate:
                    keys[f"signals.{name}.critic.zero_stage"] = 2
        return keys

    def applied(self, run: RLHF) -> RLHF | None:
        """The run with this split; None where its rules forbid it."""
        values = run.model_dump()
        for key, value in self.keys(run).items():
            *path, last = key.split(".")
            section = values
            for name in path:
                section = section[name]
            section[last] = value
        try:
            return RLHF.model_validate(values)
        except ValidationError:
            return None

    def changes(self, run: RLHF) -> dict[str, Any]:
        """Those of `keys` whose value is another one in the run."""
        return {key: value for key, value in self.keys(run).items() if _value(run, key) != value}


def _value(run: RLHF, key: str) -> Any:
    value: Any = run
    for name in key.split("."):
        value = value[name] if isinstance(value, Mapping) else getattr(value, name)
    return value


def splits(run: RLHF, gpus: int) -> Iterator[Split]:
    """All splits of so many GPUs with every GPU in use, as far as engines of several GPUs allow, and sizes of chunks.

    Ranks that train together divide the responses of an optimiser step evenly, so their number is a divisor.
    """
    responses = run.prompts_per_step * run.samples_per_prompt
    chunks = sorted({min(run.rollout.chunk_size * more, responses) for more in CHUNKS})
    responses //= run.learner.mini_batches
    ranks = [size for size in range(1, gpus + 1) if responses % size == 0]
    judges = sum(signal.model is not None for signal in run.signals.values())
    critics = any(run.has_critic(name) for name, signal in run.signals.items() if signal.model is not None)
    for split in _apart(run, gpus, ranks, judges, critics):
        yield from (replace(split, chunk=chunk) for chunk in chunks)
    if run.rollout.tensor_parallel_size == 1:
        yield from _in_turns(run, gpus, ranks, judges)


def _apart(run: RLHF, gpus: int, ranks: list[int], judges: int, critics: bool) -> Iterator[Split]:
    parallel, has_reference = run.rollout.tensor_parallel_size, run.policy.lora is None
    for learner in ranks:
        for signals in ranks if judges else [0]:
            own = [size for size in (1, 2, 4, 8, 16, 32) if size <= gpus // 4] if has_reference else [0]
            for reference, beside in [(size, False) for size in own] + ([(learner, True)] if has_reference else []):
                left = gpus - learner - judges * signals - (0 if beside else reference)
                if left < parallel:
                    continue
                for offload in (False, True) if critics else (False,):
                    split = Split(left // parallel, learner, signals, reference, beside, False, 0, offload, 0)
                    yield from (replace(split, staleness=staleness) for staleness in STALENESS)


def _in_turns(run: RLHF, gpus: int, ranks: list[int], judges: int) -> Iterator[Split]:
    large = [size for size in ranks if size * 4 > gpus] or ranks[-1:]
    reference = gpus if run.policy.lora is None else 0
    for learner in large:
        for signals in large if judges else [0]:
            yield Split(gpus, learner, signals, reference, False, True, 0, False, run.rollout.chunk_size)
