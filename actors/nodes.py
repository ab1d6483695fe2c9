"""Whether a node is there: what Ray knows of it, and when."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

DEATH_S = 60.0  # within which it is known that an actor has died, with its node
POLL_S = 0.2


@ray.remote(num_cpus=0)
def _here() -> None:
    """It runs."""


def wait_for_word(nodes: Iterable[str]) -> set[str]:
    """Those of these nodes that are dead, once it is known of each: it answers, or Ray says that it is dead.

    An actor may have died with its node. Ray finds that out by a check that fails several times, some 15 s later, and
    starts others on it until then. Where a node neither answers nor is dead after `DEATH_S`, what is started next
    will show what is wrong with it.
    """
    deadline, dead, asked = time.monotonic() + DEATH_S, set[str](), dict[Any, str]()
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        asked[cast(Any, _here).options(scheduling_strategy=there).remote()] = node
    while asked and time.monotonic() < deadline:
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL_S)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        dead |= set(asked.values()) - alive
        asked = {ref: node for ref, node in asked.items() if ref not in ready and node in alive}
    return dead
