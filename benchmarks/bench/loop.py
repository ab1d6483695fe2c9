"""Castor's own loop through its real actors, on models made for the bench."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from actors.cluster import cluster
from actors.reservation import Reservation
from actors.signal import SignalModels
from castor.config.cluster import RayCluster
from castor.config.rlhf import RLHF
from castor.data.tokens.prompt_stream import PromptStream
from castor.model_reference import ModelReference
from castor.run.stages.rlhf import RLHFStage
from trainers.rlhf.groups import Groups
from trainers.rlhf.loop import train
from trainers.rlhf.producer import Producer

LAPS = ("rollout_s", "learn_s", "checkpoint_s", "transfer_s")  # of a step, one after the other


@dataclass
class Loop:
    """The actors of a run, and how far it has come."""

    config: RLHF
    groups: Groups
    steps: int = 0

    def block(self, stream: PromptStream, count: int, max_staleness: int = 0) -> Block:
        """Take `count` steps; with a staleness rollout and learning overlap."""
        rollout = self.config.rollout.model_copy(update={"max_staleness": max_staleness})
        config = self.config.model_copy(update={"steps": self.steps + count, "rollout": rollout})
        producer = Producer(config, self.groups, stream, 0, self.steps + 1)
        rows: list[dict[str, float]] = []
        before, start = _ray_cpu_seconds(), time.perf_counter()
        train(config, self.groups, producer, lambda step: rows.append(step.metrics))
        self.steps += count
        return Block(rows, (_ray_cpu_seconds() - before) / (time.perf_counter() - start))


@dataclass(frozen=True)
class Block:
    """Some steps."""

    rows: list[dict[str, float]]  # metrics of each
    ray_share: float  # CPU seconds of the driver and of Ray's own processes, the object store's among them, a second

    def seconds(self, skipped: int) -> list[float]:
        """Of each step after the first `skipped`."""
        return [sum(row[lap] for lap in LAPS) for row in self.rows[skipped:]]


def _ray_cpu_seconds() -> float:
    """CPU seconds so far of this process and of Ray's own on this machine (the object store is a part of raylet)."""
    driver = psutil.Process()
    rays = [child for child in driver.children(recursive=True) if child.name() in ("raylet", "gcs_server")]
    times = [process.cpu_times() for process in (driver, *rays)]
    return float(sum(each.user + each.system for each in times))


@contextmanager
def running(config: RLHF, policy: Path, judges: Mapping[str, Path], state: Path) -> Iterator[Loop]:
    """As `acting`, on a Ray of their own."""
    with cluster(RayCluster()), acting(config, policy, judges, state) as loop:
        yield loop


@contextmanager
def acting(config: RLHF, policy: Path, judges: Mapping[str, Path], state: Path) -> Iterator[Loop]:
    """The actors of `config`, with one judge for every signal; `state` is a folder of theirs alone."""
    stage, reference = RLHFStage("bench", "rlhf.bench", config), ModelReference(str(policy))
    signals = {name: SignalModels(str(judge), str(judge), reference) for name, judge in judges.items()}
    limits = {name: signal.known_limit or 0.0 for name, signal in config.constraints.items()}
    with Groups(
        config, actors={each.name: each for each in stage.actors()}, reservation=Reservation(), policy=reference,
        signals=signals, limits=limits, template="auto", seed=0, ptx_rows=None,
        multipliers_file=state / "multipliers.json",
    ) as groups:  # fmt: skip
        yield Loop(config, groups)
