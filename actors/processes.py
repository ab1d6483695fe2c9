"""The processes of an actor: where they are stuck, and their end where it does not answer any more."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.group import get, node_id

KILL_TIMEOUT_S = 60.0
SHOW_S = 1.0  # within which stacks are printed


@dataclass(frozen=True)
class Processes:
    """An actor's process and those it has started, as (number, time of its start)."""

    node: str
    started: tuple[tuple[int, float], ...]
    watched: tuple[tuple[int, float], ...]  # those of them that print their stacks when they are asked to


def processes_of_this_actor(watched: Collection[int] = ()) -> Processes:
    """Of the actor that calls it, which is watched from then on, as the others are whose numbers are given.

    These need not be its children: where processes are forked (`actors.forking`) its child only stands for them.
    """
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    this = psutil.Process()
    seen = {each.pid: each for each in (this, *this.children(True), *map(psutil.Process, watched))}
    started = {number: (number, process.create_time()) for number, process in seen.items()}
    return Processes(node_id(), tuple(started.values()), tuple(started[each] for each in {this.pid, *watched}))


class Watched:
    """Base of an actor that shows where it is stuck when it is asked to (`show_stacks`)."""

    def processes(self) -> Processes:
        """Those of this actor. To be asked before it is stuck."""
        return processes_of_this_actor()


@contextmanager
def ends_after(seconds: float) -> Iterator[None]:
    """Where the block takes longer, this process prints the stacks of all its threads and ends."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def show_stacks(processes: Processes) -> None:
    """Have an actor print the stacks of all its threads, which end up in the run's log; it may be stuck."""
    there = NodeAffinitySchedulingStrategy(processes.node, soft=False)
    showing = cast(Any, _show_here).options(scheduling_strategy=there).remote(processes.watched)
    get(showing, KILL_TIMEOUT_S, f"node {processes.node} (showing the stacks of an actor)")


def kill(processes: Processes) -> None:
    """End them where they run. A process that is stopped hears of nothing but this."""
    there = NodeAffinitySchedulingStrategy(processes.node, soft=False)
    ending = cast(Any, _kill_here).options(scheduling_strategy=there).remote(processes.started)
    get(ending, KILL_TIMEOUT_S, f"node {processes.node} (ending the processes of an actor)")


@ray.remote(num_cpus=0)
def _show_here(watched: Sequence[tuple[int, float]]) -> None:
    _send(watched, signal.SIGUSR1)
    time.sleep(SHOW_S)


@ray.remote(num_cpus=0)
def _kill_here(started: Sequence[tuple[int, float]]) -> None:
    _send(started, signal.SIGKILL)


def _send(started: Sequence[tuple[int, float]], number: signal.Signals) -> None:
    for process, since in started:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if psutil.Process(process).create_time() == since:  # its number may be another process's by now
                os.kill(process, number)
