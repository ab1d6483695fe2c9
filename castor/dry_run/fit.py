"""Whether a plan fits the cards that its config says the cluster has, asked before anything is started."""

from __future__ import annotations

from collections.abc import Iterator

from castor.config.cluster import Hardware
from castor.config.model import source_of
from castor.dry_run.gpus import stage_gpus
from castor.dry_run.memory import GIB
from castor.dry_run.placement import PlacedActors, Sizes, placement
from castor.io.errors import CastorError
from castor.run.actors import Sampled
from castor.run.check_gpus import heads_finding
from castor.run.plan import Plan


def require_fit(plan: Plan) -> None:
    """Raise CastorError, one line per finding, when a stage does not fit `ray.hardware`. Without it, nothing is asked.

    Models of unknown size are not counted.
    """
    if plan.config.ray.hardware is not None:
        stages = placement(plan)
        findings = fit_findings(plan, stages)
        if findings:
            raise CastorError("\n".join(findings))


def fit_findings(plan: Plan, stages: dict[str, list[PlacedActors]]) -> list[str]:
    """A line for every actor that no card holds, every engine whose share is too small, and every GPU too full."""
    hardware = plan.config.ray.hardware
    if hardware is None:
        return []
    found = list(_head_findings(plan))
    found += card_findings(stages, hardware)
    told = {finding.partition(":")[0] for finding in found}
    for name, stage in plan.stages.items():
        gpus = stage_gpus(plan.bundles(stage), stages[name], hardware)
        if not gpus.fits and name not in told:
            found.append(f"{gpus.verdict(name).removesuffix('.')}: see --dry-run")
    return found


def _head_findings(plan: Plan) -> Iterator[str]:
    """Engines of models that `check` cannot read, and whose shape is known all the same."""
    sizes = Sizes(plan)
    for stage in plan.stages.values():
        held = [each for actors in stage.actors() for each in actors.holds if isinstance(each, Sampled)]
        for each in held:
            parallel = each.rollout.tensor_parallel_size
            shape = sizes(each.model) if parallel > 1 else None
            if shape is not None:
                finding = heads_finding(f"{stage.place}.rollout", source_of(each.model), shape.heads, parallel)
                if finding is not None:
                    yield finding


def card_findings(stages: dict[str, list[PlacedActors]], hardware: Hardware) -> list[str]:
    """A line for every actor that by itself is too much for a card."""
    return [finding for name, actors in stages.items() for finding in _actor_findings(name, actors, hardware)]


def _actor_findings(stage: str, actors: list[PlacedActors], hardware: Hardware) -> Iterator[str]:
    card = hardware.gpu_memory_gib * GIB
    for each in actors:
        memory = each.memory
        if memory is None or not memory.on_gpu:
            continue
        if memory.gpu_share is not None and memory.model > memory.gpu_share * card:
            yield (
                f"{stage}: {each.name} needs {memory.model / GIB:.1f} GiB of each GPU for weights, logits and the "
                f"key-value cache of one response, and gpu_memory_utilization gives it "
                f"{memory.gpu_share * card / GIB:.1f}: raise it, or tensor_parallel_size"
            )
        elif memory.on_card(card) > card:
            yield (
                f"{stage}: {each.name} holds about {memory.on_card(card) / GIB:.1f} GiB, and a GPU has "
                f"{hardware.gpu_memory_gib:g} (ray.hardware.gpu_memory_gib): {_advice(each)}"
            )


def _advice(actors: PlacedActors) -> str:
    memory = actors.memory
    assert memory is not None  # `_actor_findings`
    if memory.optimizer:
        return "more ranks or workers at zero_stage 3, or offload.optimizer cpu"
    if memory.frozen > memory.working + memory.weights:
        return "a frozen model lies whole on one GPU, so take a smaller model or larger GPUs"
    return "a smaller micro_batch_tokens, or more ranks"
