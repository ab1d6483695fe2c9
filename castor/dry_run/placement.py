"""What the actors of each stage ask of Ray, and what they are estimated to hold in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from castor.config.cluster import RayCluster
from castor.config.demo_model import DemoModel
from castor.config.model import ModelOption
from castor.config.training import Engine, Resources
from castor.dry_run.memory import (
    HELPER_PROCESS,
    TORCH_PROCESS,
    Memory,
    bytes_per_number,
    frozen,
    sampled,
    trained,
)
from castor.dry_run.shapes import Shape, measure
from castor.run.actors import Actors, Frozen, Sampled, Trained
from castor.run.plan import Plan


@dataclass(frozen=True)
class PlacedActors:
    """Actors that are alike: `count` of them, each with `resources`. `memory` is None for a model of unknown size."""

    name: str
    count: int
    resources: Resources | None  # None: reserves nothing
    work: str
    memory: Memory | None
    parameters: int | None  # of the first model each holds; None: unknown
    phases: Mapping[str, Memory] = field(default_factory=dict)  # where they take turns: what each holds in which phase


@dataclass(frozen=True)
class Totals:
    """What the actors of one stage reserve together."""

    cpus: float
    gpus: float
    custom: dict[str, float]


class Sizes:
    """Sizes of the models behind references, measured once each."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._shapes: dict[str, Shape | None] = {}

    def __call__(self, option: ModelOption) -> Shape | None:
        """None: unknown."""
        model = self._plan.origin(option)
        key = "" if isinstance(model, DemoModel) else model.model_dump_json()
        if key not in self._shapes:
            self._shapes[key] = measure(model if isinstance(model, DemoModel) else self._plan.model(model).name)
        return self._shapes[key]


def placement(plan: Plan) -> dict[str, list[PlacedActors]]:
    """The actors of every stage, in the order of the stages. A stage without actors runs in the driver."""
    sizes = Sizes(plan)
    return {name: [placed(actors, sizes) for actors in stage.actors()] for name, stage in plan.stages.items()}


def totals(actors: list[PlacedActors]) -> Totals:
    """What `actors` reserve at the same time."""
    reserving = [(a.count, a.resources) for a in actors if a.resources is not None]
    custom: dict[str, float] = {}
    for count, resources in reserving:
        for name, amount in resources.custom.items():
            custom[name] = custom.get(name, 0) + count * amount
    return Totals(sum(n * r.cpus for n, r in reserving), sum(n * r.gpus for n, r in reserving), custom)


def stored(actors: list[PlacedActors]) -> float:
    """Bytes in Ray's object store at most, but for experience, which is small: of weights that go from the learner of a
    stage to its engines through host memory, those the engines have (for engines that come late) and the next.
    """
    held = {each.name: each for each in actors}
    if "learner" not in held or "rollout" not in held:
        return 0.0
    engine = held["rollout"]
    shards = max(engine.resources.gpus, 1) if engine.resources else 1
    return 2 * engine.memory.weights * shards if engine.memory else 0.0


def cluster_cpus(ray: RayCluster) -> int | None:
    """CPUs of the cluster that would be started here; None where a running one would be joined."""
    if not ray.started_here:
        return None
    return ray.num_cpus or os.cpu_count() or 1


def placed(actors: Actors, sizes: Sizes) -> PlacedActors:
    """Actors with what each of them is estimated to hold."""
    resources = actors.resources
    if resources is None:
        return PlacedActors(actors.name, actors.count, None, actors.work, Memory(process=HELPER_PROCESS), 0)
    work = ", ".join(dict.fromkeys([actors.work, *(_told(held, actors, resources) for held in actors.holds)]))
    parameters = _parameters(actors.holds[0], sizes) if actors.holds else 0
    memories = [_memory(held, resources, sizes) for held in actors.holds]
    known = [memory for memory in memories if memory is not None]
    together = _largest if actors.one_by_one else _together
    whole = together(known) if len(known) == len(memories) else None
    phases = dict(zip(map(_phase, actors.holds), known, strict=True)) if actors.take_turns and whole else {}
    if phases and whole:
        whole = replace(whole, offloaded=whole.offloaded + sum(memory.parked for memory in known))
    return PlacedActors(actors.name, actors.count, resources, work, whole, parameters, phases)


def _memory(held: Sampled | Trained | Frozen, resources: Resources, sizes: Sizes) -> Memory | None:
    """Of an actor that holds this alone; None where the size of the model is not known."""
    shape = sizes(held.model)
    if shape is None:
        return None
    if isinstance(held, Sampled):
        return sampled(shape, held.rollout)
    if isinstance(held, Frozen):
        return frozen(shape, held.engine, resources, score=held.score)
    return trained(shape, held.engine, held.ranks, resources, score=held.score, lora=held.lora, entropy=held.entropy)


def _together(memories: Sequence[Memory]) -> Memory:
    """Of an actor that holds all of this. It works on one model at a time: the last one's working memory counts."""
    if not memories:
        return Memory(process=TORCH_PROCESS)
    asked = sum(memory.frozen for memory in memories[:-1])
    return replace(memories[-1], frozen=memories[-1].frozen + asked)


def _largest(memories: Sequence[Memory]) -> Memory:
    """Of an actor that holds one of these at a time."""
    return max(memories, key=lambda memory: memory.model, default=Memory(process=TORCH_PROCESS))


def _phase(held: Sampled | Trained | Frozen) -> str:
    """The phase of a step in which a model works."""
    if isinstance(held, Sampled):
        return "rollout"
    if isinstance(held, Frozen):
        return "judging"
    return "critics" if held.score else "learner"


def _parameters(held: Sampled | Trained | Frozen, sizes: Sizes) -> int | None:
    shape = sizes(held.model)
    if shape is None:
        return None
    return shape.parameters if isinstance(held, Sampled) or not held.score else shape.score


def _told(held: Sampled | Trained | Frozen, actors: Actors, resources: Resources) -> str:
    """How a model is held, in words."""
    if isinstance(held, Sampled):
        return _dtype(held.rollout.dtype, resources)
    if isinstance(held, Frozen):
        return _dtype(held.engine.dtype, resources)
    return f"{_zero(held.engine, resources)}{_ranks(actors.count)}{_part(held)}"


def _zero(engine: Engine, resources: Resources) -> str:
    return f"ZeRO-{engine.zero_stage} {_dtype(engine.dtype, resources)}"


def _dtype(dtype: str, resources: Resources) -> str:
    return "bfloat16" if bytes_per_number(dtype, resources.gpus > 0) == 2 else "float32"


def _ranks(count: int) -> str:
    return "" if count == 1 else f", ranks 0-{count - 1}"


def _part(held: Trained) -> str:
    if held.lora is not None:
        return f", LoRA of rank {held.lora.rank}"
    layers = held.engine.trained_layers
    if layers is None:
        return ""
    return f", last {layers} layer{'' if layers == 1 else 's'}" if layers else ", head alone"
