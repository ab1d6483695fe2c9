"""What can be wrong with the GPUs a stage asks for, found without knowing how large its models are. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator

from castor.config.cluster import Hardware
from castor.config.rollout import Rollout
from castor.run.actors import Actors
from castor.run.stages.stage import Stage

_EDGE = 1e-6  # fractions of a GPU add up in binary


def gpu_findings(stage: Stage, hardware: Hardware | None) -> Iterator[str]:
    """A line each: a number of GPUs that none can have, engines that disagree with it, and more than `hardware` has."""
    if stage.rollout is not None:
        take_turns = any(each.take_turns for each in stage.actors())
        yield from _engine_findings(f"{stage.place}.rollout", stage.rollout, take_turns)
    actors = [each for each in stage.actors() if each.resources is not None and each.resources.gpus > 0]
    for each in actors:
        yield from _count_findings(stage, each)
    if hardware is not None:
        yield from _cluster_findings(stage.name, actors, hardware)


def _engine_findings(place: str, rollout: Rollout, take_turns: bool) -> Iterator[str]:
    parallel, gpus = rollout.tensor_parallel_size, rollout.resources.gpus
    if parallel != max(1, gpus) and (parallel > 1 or gpus > 1):
        yield (
            f"{place}: tensor_parallel_size {parallel} needs as many GPUs in one worker, and resources.gpus is "
            f"{gpus:g}: make them agree"
        )
    if not take_turns and 0 < gpus < 1 and rollout.gpu_memory_utilization > gpus + _EDGE:
        yield (
            f"{place}: gpu_memory_utilization {rollout.gpu_memory_utilization:g} takes more of a GPU than "
            f"resources.gpus {gpus:g}, and the rest is its neighbours': lower the one or raise the other"
        )


def _count_findings(stage: Stage, actors: Actors) -> Iterator[str]:
    assert actors.resources is not None  # `gpu_findings`
    gpus, place = actors.resources.gpus, f"{stage.place}: {actors.name} asks for {actors.resources.gpus:g} GPUs"
    if actors.name == "rollout":
        if gpus > 1 and gpus != int(gpus):
            yield f"{place}, and only a single GPU can be shared: give a whole number, or a fraction of one"
    elif gpus > 1:
        yield f"{place}, and one process computes on one GPU: give resources.gpus 1 and more ranks or workers"


def _cluster_findings(name: str, actors: list[Actors], hardware: Hardware) -> Iterator[str]:
    """More GPUs than there are: together, in one actor, or in shares of which no two fit on one GPU."""
    total = hardware.nodes * hardware.gpus_per_node
    has = f"ray.hardware has {hardware.nodes} x {hardware.gpus_per_node}"
    asked = [(each.name, each.count, each.resources.gpus) for each in actors if each.resources is not None]
    for actor, _, gpus in asked:
        if gpus > hardware.gpus_per_node:
            yield (
                f"{name}: one {actor} asks for {gpus:g} GPUs of one node, and {has}: lower tensor_parallel_size, or "
                "take larger nodes"
            )
            return
    whole = sum(count * int(gpus) for _, count, gpus in asked if gpus >= 1)
    shares = [gpus for _, count, gpus in asked for _ in range(count) if gpus < 1]
    if whole + sum(shares) > total + _EDGE:
        parts = ", ".join(f"{actor} {count} x {gpus:g}" for actor, count, gpus in asked)
        yield (
            f"{name} asks for {whole + sum(shares):g} GPUs ({parts}), and {has}: lower workers or ranks, or add nodes"
        )
    elif whole + sum(share > 0.5 + _EDGE for share in shares) > total:
        told = ", ".join(f"{share:g}" for share in sorted(set(shares), reverse=True) if share > 0.5)
        yield (
            f"{name} asks for more shares of over half a GPU ({told}) than GPUs are left beside {whole} whole ones, "
            f"and {has}: two of them add up to more than one GPU; lower workers or ranks, or make the shares smaller"
        )


def heads_finding(place: str, model: str, heads: int, parallel: int) -> str | None:
    """What vLLM would refuse: attention heads that cannot be shared out evenly among the GPUs of one engine."""
    if heads % parallel == 0:
        return None
    fits = [count for count in (2, 4, 8, 16) if heads % count == 0]
    hint = f"take {' or '.join(map(str, fits))}" if fits else "take 1"
    return (
        f"{place}: tensor_parallel_size {parallel} does not divide the {heads} attention heads of {model}: {hint}, and "
        "resources.gpus to match"
    )
