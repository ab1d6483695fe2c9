"""The GPUs of a stage, reserved together before its first actor starts: one placement group of its bundles.

All or nothing: two stages on one cluster cannot each hold half of what they need, and no order of starting decides who
shares a GPU with whom.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.group import START_TIMEOUT_S, actor_options
from actors.handover import Handover
from castor.io.errors import CastorError
from castor.run.actors import Actors
from castor.run.bundles import Bundle
from castor.run.profile import Profile

log = logging.getLogger(__name__)
QUIET_S = 15.0  # a longer wait for GPUs is told of


@dataclass(frozen=True)
class Reservation:
    """Where the actors of a stage go. Those of no bundle go where Ray likes."""

    group: PlacementGroup | None = None
    bundle_of: Mapping[str, int] = field(default_factory=dict)
    profile: Profile | None = None  # what is recorded of them

    def options(self, actors: Actors, number: int, **env: str) -> dict[str, Any]:
        """Arguments of `.options()` for one of the actors."""
        assert actors.resources is not None
        name = actors.rank_names[number]
        options = actor_options(actors.resources, name, **env, **(self.profile.env(name) if self.profile else {}))
        if self.group is None or name not in self.bundle_of:
            return options
        where = PlacementGroupSchedulingStrategy(self.group, self.bundle_of[name])
        return options | {"scheduling_strategy": where}

    def env(self, name: str) -> dict[str, Any]:
        """Arguments of `.options()` for an actor that reserves nothing."""
        return {"runtime_env": {"env_vars": self.profile.env(name)}} if self.profile else {}

    def shares(self, actors: Actors) -> bool:
        """Whether any of them is on a GPU with actors of another name."""
        own = set(actors.rank_names)
        bundles = {self.bundle_of[name] for name in own & self.bundle_of.keys()}
        return any(bundle in bundles for name, bundle in self.bundle_of.items() if name not in own)


@contextmanager
def reserve(
    bundles: Sequence[Bundle], stage: str, profile: Profile | None = None, handover: Handover | None = None
) -> Iterator[Reservation]:
    """The bundles of a stage, held while the body runs. Its actors end with it, and are recorded in `profile`.

    With a `handover` they are those that the stage before left, if it did, and are left with what the body leaves.
    Raises CastorError when the cluster does not give them within `START_TIMEOUT_S`.
    """
    if not bundles:
        yield Reservation(profile=profile)
        return
    handover = handover or Handover()
    group, handover.group = handover.group, None
    if group is None:
        amounts = [bundle.resources for bundle in bundles]
        group = placement_group(amounts, strategy="PACK", name=f"{stage}-{time.time_ns():x}")
    try:
        if not group.wait(QUIET_S):
            log.warning("%s waits for GPUs: %s", stage, "; ".join(map(str, bundles)))
            if not group.wait(START_TIMEOUT_S):
                raise CastorError(_not_given(bundles, stage))
        places = {name: index for index, bundle in enumerate(bundles) for name in bundle.members}
        yield Reservation(group, places, profile)
    finally:
        if handover.group is not group:
            remove_placement_group(group)


def _not_given(bundles: Sequence[Bundle], stage: str) -> str:
    gpus = sum(bundle.gpus for bundle in bundles)
    largest = max(bundle.gpus for bundle in bundles)
    custom = sorted({name for bundle in bundles for name in bundle.custom})
    also = f" (with {', '.join(custom)})" if custom else ""
    return (
        f"{stage} was not given {gpus:g} GPUs{also}, {largest} of them on one node, within "
        f"{START_TIMEOUT_S + QUIET_S:.0f} s; the cluster has {ray.cluster_resources().get('GPU', 0):g}, of which "
        f"{ray.available_resources().get('GPU', 0):g} are free: add nodes, or lower ranks, workers or "
        "ray.hardware.gpus_per_node"
    )
