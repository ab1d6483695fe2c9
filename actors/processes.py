"""The processes of an actor, and their end where it does not answer any more."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.group import get, node_id

KILL_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Processes:
    """An actor's process and those it has started, as (number, time of its start)."""

    node: str
    started: tuple[tuple[int, float], ...]


def processes_of_this_actor() -> Processes:
    """Of the actor that calls it."""
    this = psutil.Process()
    return Processes(node_id(), tuple((each.pid, each.create_time()) for each in (this, *this.children(True))))


def kill(processes: Processes) -> None:
    """End them where they run. A process that is stopped hears of nothing but this."""
    there = NodeAffinitySchedulingStrategy(processes.node, soft=False)
    ending = cast(Any, _kill_here).options(scheduling_strategy=there).remote(processes.started)
    get(ending, KILL_TIMEOUT_S, f"node {processes.node} (ending the processes of an actor)")


@ray.remote(num_cpus=0)
def _kill_here(started: Sequence[tuple[int, float]]) -> None:
    for number, since in started:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if psutil.Process(number).create_time() == since:  # the number may be another process's by now
                os.kill(number, signal.SIGKILL)
