"""The actors of a run as a simulation has them: which of them compute on which GPU, or on the cores of a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from castor.planner.device import Device
from castor.planner.simulation import Actor, Machine
from castor.run.actors import Actors
from castor.run.bundles import Bundle


@dataclass(frozen=True)
class Cast:
    """Actors by the name of their group, rank by rank, and what they compute on."""

    groups: dict[str, list[Actor]]
    machines: list[Machine]

    def __getitem__(self, group: str) -> list[Actor]:
        return self.groups[group]

    def __contains__(self, group: str) -> bool:
        return group in self.groups


def make_cast(actors: Sequence[Actors], bundles: Sequence[Bundle], device: Device, cores: float | None = None) -> Cast:
    """The actors of a stage on the GPUs of its bundles; those without a GPU share `cores` cores, if that is known.

    Each GPU of a bundle of several belongs to one actor; the only one of a bundle may have several, which slow each
    other down while they work at the same time.
    """
    of: dict[str, list[Machine]] = {}
    machines: list[Machine] = []
    for bundle in bundles:
        gpus = [Machine() for _ in range(bundle.gpus)]
        machines += gpus
        each = max(1, bundle.gpus // len(bundle.members))
        for place, member in enumerate(bundle.members):
            of[member] = gpus if bundle.gpus == 1 else gpus[place * each : (place + 1) * each]
    node = [] if cores is None else [Machine(cores)]
    computing = [asked for asked in actors if asked.resources is not None]
    groups = {
        asked.name: [
            Actor(asked.name, of.get(name, node), 1.0 if name in of else float(asked.resources.threads))
            for name in asked.rank_names
        ]
        for asked in computing
        if asked.resources is not None
    }
    return Cast(groups, [*machines, *node])
