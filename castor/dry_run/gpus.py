"""What each GPU of the cluster holds under the bundles of a stage, and whether that fits: for `--dry-run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from castor.config.cluster import Hardware
from castor.dry_run.memory import GIB, Memory
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
    held: Mapping[str, float | None] = {each.name: _bytes_on_gpu(each.memory, capacity) for each in members}
    if bundle.gpus > 1:  # each has its own
        return [((each.name,), held[each.name]) for each in members for _ in range(bundle.gpus // len(members))]
    amounts = [held[each.name] for each in members]
    known = [amount for amount in amounts if amount is not None]
    return [(tuple(each.name for each in members), sum(known) if len(known) == len(amounts) else None)]


def _bytes_on_gpu(memory: Memory | None, capacity: float) -> float | None:
    if memory is None:
        return None
    return memory.gpu if memory.gpu_share is None else memory.gpu_share * capacity
