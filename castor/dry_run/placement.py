"""Which actors each stage starts, what each asks of Ray, and what it is estimated to hold in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from castor.config.cluster import RayCluster
from castor.config.collect import Collect
from castor.config.demo_model import DemoModel
from castor.config.dpo import DPO
from castor.config.evaluate import Evaluate
from castor.config.pipeline import Config
from castor.config.rlhf import RLHF, Rollout
from castor.config.supervised import SFT, Supervised, Workers
from castor.config.training import Engine, LoRA, Resources
from castor.dry_run.memory import (
    HELPER_PROCESS,
    NO_MODEL,
    TORCH_PROCESS,
    Memory,
    Shape,
    bytes_per_number,
    frozen,
    measure,
    sampled,
    trained,
)
from castor.run.check import evaluated, origin, stage_sections

SCORER_ENGINE = Engine(pack_length=128)  # of the scorers of `evaluate`, which has no engine section


@dataclass(frozen=True)
class Actors:
    """Actors that are alike: `count` of them, each with `resources`. `memory` is None for a model of unknown size."""

    name: str
    count: int
    resources: Resources | None  # None: reserves nothing
    work: str
    memory: Memory | None
    parameters: int | None = None


@dataclass(frozen=True)
class Totals:
    """What the actors of one stage reserve together."""

    cpus: float
    gpus: float
    custom: dict[str, float]


class Sizes:
    """Sizes of the models behind references, measured once each."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._shapes: dict[str, Shape | None] = {}

    def __call__(self, reference: str) -> Shape | None:
        """None: unknown."""
        model = origin(self._config, reference)
        key = "" if isinstance(model, DemoModel) else model
        if key not in self._shapes:
            self._shapes[key] = measure(model)
        return self._shapes[key]


def placement(config: Config) -> dict[str, list[Actors]]:
    """The actors of every stage, in the order of the stages. A stage without actors runs in the driver."""
    sizes = Sizes(config)
    return {stage: _actors(config, stage, sizes) for stage in stage_sections(config)}


def totals(actors: list[Actors]) -> Totals:
    """What `actors` reserve at the same time."""
    reserving = [(a.count, a.resources) for a in actors if a.resources is not None]
    custom: dict[str, float] = {}
    for count, resources in reserving:
        for name, amount in resources.custom.items():
            custom[name] = custom.get(name, 0) + count * amount
    return Totals(sum(n * r.cpus for n, r in reserving), sum(n * r.gpus for n, r in reserving), custom)


def cluster_cpus(ray: RayCluster) -> int | None:
    """CPUs of the cluster that would be started here; None where a running one would be joined."""
    if ray.address or os.environ.get("RAY_ADDRESS"):
        return None
    return ray.num_cpus or os.cpu_count() or 1


def _actors(config: Config, stage: str, sizes: Sizes) -> list[Actors]:
    section = stage_sections(config)[stage]
    if isinstance(section, Supervised):
        return _supervised(section, sizes(section.model))
    if isinstance(section, Collect):
        return [_rollout(section.rollout, sizes(section.policy))]
    if isinstance(section, RLHF):
        return _rlhf(section, sizes)
    if isinstance(section, Evaluate):
        return _evaluate(config, section, sizes)
    return []


def _supervised(stage: Supervised, shape: Shape | None) -> list[Actors]:
    score = not isinstance(stage, SFT | DPO)  # the reference of a DPO stage is gone before the training begins
    resources = stage.resources
    return [
        Actors(
            name="RayTrainWorker",
            count=stage.max_workers,
            resources=resources,
            work=f"{_trains(stage.engine, resources)}{_ranks(stage.max_workers)}{_elastic(stage)}"
            f"{_adapters(stage.lora)}",
            memory=_of(
                shape,
                lambda s: trained(s, stage.engine, _fewest(stage), resources, score=score, lora=stage.lora),
            ),
            parameters=_count(shape, score=score),
        ),
        _helper("fit", "Ray Train's driver"),
        _helper("TrainController", "Ray Train: restarts the workers"),
        _helper("ProgressBoard", "newest step, for the progress bar"),
    ]


def _rlhf(run: RLHF, sizes: Sizes) -> list[Actors]:
    learner, policy, lora = run.learner, sizes(run.policy.model), run.policy.lora
    reference = run.policy.reference
    actors = [_rollout(run.rollout, policy)]
    if lora is None:
        actors.append(
            Actors(
                name="reference",
                count=reference.ranks,
                resources=reference.resources,
                work=f"frozen policy, {_dtype(learner.engine, reference.resources)}",
                memory=_of(policy, lambda s: frozen(s, learner.engine, reference.resources, score=False)),
                parameters=_count(policy, score=False),
            )
        )
    both = f"policy{_adapters(lora)}{', and the reference' if lora else ''}"
    actors.append(
        Actors(
            name=_numbered("learner", learner.ranks),
            count=learner.ranks,
            resources=learner.resources,
            work=f"{both}, {_trains(learner.engine, learner.resources)}{_ranks(learner.ranks)}",
            memory=_of(
                policy,
                lambda s: trained(s, learner.engine, learner.ranks, learner.resources, score=False, lora=lora),
            ),
            parameters=_count(policy, score=False),
        )
    )
    actors += [_signal(run, name, sizes) for name in run.signals]
    if run.has_owner:
        actors.append(_helper("MultiplierOwner", _owned(run)))
    return actors


def _signal(run: RLHF, name: str, sizes: Sizes) -> Actors:
    signal, engine = run.signals[name], run.signals[name].scoring
    resources, ranks = signal.resources, signal.ranks
    kind = "function" if signal.function else "remote scorer" if signal.http else "frozen"
    judge = NO_MODEL if signal.model is None else sizes(signal.model)
    dtype = f", {_dtype(engine, resources)}" if signal.model else ""
    if run.has_critic(name):
        assert signal.critic_start is not None  # `RLHF` has checked it
        critic = sizes(signal.critic_start)
        work = f"{signal.role}, {kind}, and its critic, {_trains(engine, resources)}{_ranks(ranks)}"
        memory = _of(judge, lambda j: _of(critic, lambda c: _with_critic(c, j, engine, ranks, resources)))
    else:
        work = f"{signal.role}, {kind}{dtype}{_ranks(ranks)}"
        memory = _of(judge, lambda s: frozen(s, engine, resources, score=True))
    return Actors(
        name=_numbered(f"signal-{name}", ranks),
        count=ranks,
        resources=resources,
        work=work,
        memory=memory if signal.model or run.has_critic(name) else Memory(process=TORCH_PROCESS),
        parameters=_count(judge, score=True),
    )


def _with_critic(critic: Shape, judge: Shape, engine: Engine, ranks: int, resources: Resources) -> Memory:
    memory = trained(critic, engine, ranks, resources, score=True)
    return replace(memory, frozen=frozen(judge, engine, resources, score=True).frozen)


def _owned(run: RLHF) -> str:
    """What the multiplier owner keeps, in words."""
    rules = [run.multiplier(name).rule for name in run.constraints]
    parts = [f"{len(rules)} λ, rule {', '.join(dict.fromkeys(rules))}"] if rules else []
    return " and ".join([*parts, *(["the KL coefficient"] if run.advantage.kl_target else [])])


def _evaluate(config: Config, stage: Evaluate, sizes: Sizes) -> list[Actors]:
    policies = list(evaluated(config).values())
    scorers = [
        Actors(
            name=f"{kind}-scorer",
            count=1,
            resources=stage.resources,
            work=f"frozen {kind} model, {_dtype(SCORER_ENGINE, stage.resources)}",
            memory=_of(sizes(reference), lambda s: frozen(s, SCORER_ENGINE, stage.resources, score=True)),
            parameters=_count(sizes(reference), score=True),
        )
        for kind, reference in (("reward", stage.reward), ("cost", stage.cost))
    ]
    return [
        _rollout(stage.rollout, sizes(policies[0])),
        *scorers,
        _helper("FolderWeights", f"hands {len(policies)} policies to the engines in turn"),
    ]


def _rollout(rollout: Rollout, shape: Shape | None) -> Actors:
    gpu = rollout.resources.gpus > 0
    dtype = "bfloat16" if bytes_per_number(rollout.dtype, gpu) == 2 else "float32"
    parallel = f", tensor parallel {rollout.tensor_parallel_size}" if rollout.tensor_parallel_size > 1 else ""
    return Actors(
        name="rollout",
        count=rollout.workers,
        resources=rollout.resources,
        work=f"vLLM ({rollout.engine}), {dtype}{parallel}",
        memory=_of(shape, lambda s: sampled(s, rollout)),
        parameters=_count(shape, score=False),
    )


def _helper(name: str, work: str) -> Actors:
    return Actors(name, 1, None, work, Memory(process=HELPER_PROCESS))


def _of(shape: Shape | None, memory: Callable[[Shape], Memory | None]) -> Memory | None:
    return None if shape is None else memory(shape)


def _count(shape: Shape | None, *, score: bool) -> int | None:
    return None if shape is None else shape.score if score else shape.parameters


def _trains(engine: Engine, resources: Resources) -> str:
    return f"ZeRO-{engine.zero_stage} {_dtype(engine, resources)}"


def _dtype(engine: Engine, resources: Resources) -> str:
    return "bfloat16" if bytes_per_number(engine.dtype, resources.gpus > 0) == 2 else "float32"


def _ranks(count: int) -> str:
    return "" if count == 1 else f", ranks 0-{count - 1}"


def _fewest(stage: Supervised) -> int:
    """The fewer workers there are, the more each of them holds."""
    return stage.workers.min if isinstance(stage.workers, Workers) else stage.workers


def _elastic(stage: Supervised) -> str:
    return f", elastic from {stage.workers.min}" if isinstance(stage.workers, Workers) else ""


def _adapters(lora: LoRA | None) -> str:
    return f", LoRA of rank {lora.rank}" if lora else ""


def _numbered(name: str, count: int) -> str:
    return f"{name}-0" if count == 1 else f"{name}-0..{count - 1}"
