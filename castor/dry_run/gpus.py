"""Which actors share a GPU, and whether it holds them: for `--dry-run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

from castor.config.cluster import Hardware
from castor.dry_run.memory import GIB, Memory
from castor.dry_run.placement import PlacedActors

_EDGE = 1e-6  # fractions of a GPU add up in binary


@dataclass
class GPU:
    """One GPU of the cluster."""

    free: float = 1.0  # not reserved
    used: float | None = 0.0  # bytes; None: a model of unknown size is on it
    actors: list[str] = field(default_factory=list)

    def take(self, share: float, name: str, held: float | None) -> None:
        """Reserve `share` of it for an actor that holds `held` bytes there."""
        self.free -= share
        self.used = None if self.used is None or held is None else self.used + held
        self.actors.append(name)


@dataclass
class StageGPUs:
    """What the actors of one stage hold on the GPUs of the cluster."""

    gpus: list[GPU]  # those in use
    capacity: float  # bytes of one
    unplaced: list[str]  # actors that find no GPU free

    @property
    def fits(self) -> bool:
        """Whether every actor has its GPU and every GPU of known use holds its actors."""
        return not self.unplaced and all(gpu.used is None or gpu.used <= self.capacity for gpu in self.gpus)

    def groups(self) -> list[tuple[int, GPU]]:
        """GPUs that are alike, counted, in order."""
        alike = groupby(self.gpus, key=lambda gpu: (sorted(gpu.actors), gpu.used))
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


def gpu_plan(stages: dict[str, list[PlacedActors]], hardware: Hardware) -> dict[str, StageGPUs]:
    """The GPUs of every stage, actors placed in the order they are started.

    A share of a GPU goes where the least that is enough for it is free, as Ray does it; an actor of several GPUs gets
    free ones of one node.
    """
    capacity = hardware.gpu_memory_gib * GIB
    return {stage: _placed(actors, hardware, capacity) for stage, actors in stages.items()}


def _placed(actors: list[PlacedActors], hardware: Hardware, capacity: float) -> StageGPUs:
    nodes = [[GPU() for _ in range(hardware.gpus_per_node)] for _ in range(hardware.nodes)]
    unplaced = []
    for each in actors:
        wanted = each.resources.gpus if each.resources else 0
        for _ in range(each.count if wanted else 0):
            chosen = _whole(nodes, round(wanted)) if wanted >= 1 else _shared(nodes, wanted)
            if not chosen:
                unplaced.append(each.name)
            for gpu in chosen:
                gpu.take(min(wanted, 1.0), each.name, _bytes_on_gpu(each.memory, capacity))
    return StageGPUs([gpu for node in nodes for gpu in node if gpu.actors], capacity, unplaced)


def _bytes_on_gpu(memory: Memory | None, capacity: float) -> float | None:
    if memory is None:
        return None
    return memory.gpu if memory.gpu_share is None else memory.gpu_share * capacity


def _whole(nodes: list[list[GPU]], count: int) -> list[GPU]:
    for node in nodes:
        free = [gpu for gpu in node if gpu.free > 1 - _EDGE]
        if len(free) >= count:
            return free[:count]
    return []


def _shared(nodes: list[list[GPU]], share: float) -> list[GPU]:
    enough = [gpu for node in nodes for gpu in node if gpu.free > share - _EDGE]
    return [min(enough, key=lambda gpu: gpu.free)] if enough else []
