"""What each GPU of the cluster holds under the bundles of a stage, and whether that fits: for `--dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from castor.config.cluster import Hardware
from castor.dry_run.memory import GIB
from castor.dry_run.placement import PlacedActors
from castor.run.bundles import Bundle, place


@dataclass(frozen=True)
class GPU:
    """One GPU in use."""

    node: int
    actors: tuple[str, ...]  # by role
    used: float | None  # bytes; None: a model of unknown size is on it


@dataclass(frozen=True)
class StageGPUs:
    """What the actors of one stage hold on the GPUs of the cluster."""

    gpus: list[GPU]
    capacity: float  # bytes of one
    unplaced: list[str]  # roles whose bundles find no node with enough GPUs

    @property
    def fits(self) -> bool:
        """Whether every bundle has its node and every GPU of known use holds its actors."""
        return not self.unplaced and all(gpu.used is None or gpu.used <= self.capacity for gpu in self.gpus)

    def groups(self) -> list[tuple[int, GPU]]:
        """GPUs of a node that are alike, counted, in order."""
        alike = groupby(self.gpus, key=lambda gpu: (gpu.node, gpu.actors, gpu.used))
        return [(len(members), members[0]) for members in (list(group) for _, group in alike)]

    def verdict(self, stage: str) -> str:
        """One line."""
        if self.unplaced:
            return f"{stage}: TOO FEW GPUs for {', '.join(dict.fromkeys(self.unplaced))}."
        if not self.gpus:
            return f"{stage}: no GPU."
        known = [gpu.used for gpu in self.gpus if gpu.used is not None]
        unknown = "; models of unknown size are not counted" if len(known) < len(self.gpus) else ""
        most = max(known, default=0.0)
        told = f"{most / GIB:.1f} GiB on the fullest of {len(self.gpus)} GPUs"
        return f"{stage}: {'fits' if self.fits else 'TOO MUCH'}, {told}{unknown}."


def stage_gpus(bundles: Sequence[Bundle], actors: Sequence[PlacedActors], hardware: Hardware) -> StageGPUs:
    """The GPUs of a stage with these bundles of its actors. Which nodes Ray takes is its choice; these are possible."""
    capacity = hardware.gpu_memory_gib * GIB
    of = {f"{each.name}-{number}": each for each in actors for number in range(each.count)}
    gpus, unplaced = list[GPU](), list[str]()
    for bundle, node in zip(bundles, place(bundles, [hardware.gpus_per_node] * hardware.nodes), strict=True):
        members = [of[name] for name in bundle.members]
        if node is None:
            unplaced += [member.name for member in members]
        else:
            gpus += [GPU(node, *held) for held in _on_each(bundle, members, capacity)]
    return StageGPUs(sorted(gpus, key=lambda gpu: gpu.node), capacity, unplaced)


def _on_each(
    bundle: Bundle, members: Sequence[PlacedActors], capacity: float
) -> list[tuple[tuple[str, ...], float | None]]:
    """Who is on each GPU of a bundle, and the bytes that they hold there."""
    if bundle.gpus > 1:  # each has its own
        return [((each.name,), _held([each], capacity)) for each in members for _ in range(bundle.gpus // len(members))]
    return [(tuple(each.name for each in members), _held(members, capacity))]


def _held(members: Sequence[PlacedActors], capacity: float) -> float | None:
    """Bytes on a GPU with these actors; where they take turns, of the phase that holds most. None: not known."""
    memories = [each.memory for each in members if each.memory is not None]
    if len(memories) < len(members):
        return None
    if not all(each.phases for each in members):
        return sum(memory.on_card(capacity) for memory in memories)
    phases = dict[str, float]()
    for each in members:
        for phase, memory in each.phases.items():
            phases[phase] = phases.get(phase, 0.0) + memory.on_card(capacity) - memory.runtime
    return max(phases.values()) + sum(memory.runtime for memory in memories)
