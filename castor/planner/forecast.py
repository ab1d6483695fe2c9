"""What a step of a run would take: the mean over simulated steps, and who waits for whom in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from castor.dry_run.placement import PlacedActors, Sizes, placed
from castor.planner.cast import make_cast
from castor.planner.costs import Costs
from castor.planner.device import Device
from castor.planner.lengths import Lengths
from castor.planner.rehearsal import Rehearsal, StepTimes
from castor.planner.work import Work
from castor.run.bundles import make_bundles
from castor.run.stages.rlhf import RLHFStage

PARTS = ("rollout", "judging", "values", "critics", "learner", "weights", "switching")
STEPS = 8  # simulated, after those in which the first responses are under way


@dataclass(frozen=True)
class Traffic:
    """What is sampled: tokens of a prompt in the mean, and lengths of responses."""

    prompt: float
    lengths: Lengths


@dataclass(frozen=True)
class GroupTime:
    """How one group of actors spends a step: shares of its seconds, in the mean over its actors."""

    actors: int
    busy: float
    idle: Mapping[str, float]  # by the part of the step that is waited for

    @property
    def waits_for(self) -> str:
        """The part that it waits for longest; empty where it hardly waits."""
        part = max(self.idle, key=lambda name: self.idle[name], default="")
        return part if part and self.idle[part] >= 0.005 else ""


@dataclass(frozen=True)
class Forecast:
    """A step of a run, in the mean."""

    step_s: float
    parts: Mapping[str, float]  # seconds in which the loop waits for each part; together `step_s`
    spent: Mapping[str, float]  # seconds that each kind of work takes one of its actors, overlapped or not
    groups: Mapping[str, GroupTime]
    gpus: int
    response_tokens: float  # of a step

    @property
    def gpu_seconds(self) -> float:
        """What a step costs."""
        return self.step_s * self.gpus

    @property
    def rate(self) -> float:
        """Response tokens/s, of each GPU where there are any."""
        return self.response_tokens / self.step_s / max(self.gpus, 1)


def forecast(
    stage: RLHFStage, sizes: Sizes, device: Device, gpus_per_node: int, traffic: Traffic, steps: int = STEPS
) -> Forecast:
    """Simulate a run and take the mean of its steps. Raises CastorError for a model of unknown size."""
    actors = stage.actors()
    bundles = make_bundles(actors, gpus_per_node)
    on_gpu = bool(bundles)
    run, work = stage.section, Work(stage.section, sizes, Costs(device, gpus_per_node, on_gpu))
    cast = make_cast(actors, bundles, device, None if on_gpu else device.cores)
    known: dict[str, PlacedActors] = {each.name: placed(each, sizes) for each in actors}
    rehearsal = Rehearsal(work, cast, known, traffic.lengths, traffic.prompt)
    first = 1 + run.rollout.max_staleness
    rehearsal.go(first + steps)
    return _mean(rehearsal.times[first:], rehearsal, sum(bundle.gpus for bundle in bundles))


def _mean(times: Sequence[StepTimes], rehearsal: Rehearsal, gpus: int) -> Forecast:
    count, total = len(times), sum(each.seconds for each in times)
    parts = {part: sum(each.waited.get(part, 0.0) for each in times) / count for part in PARTS}
    groups = {}
    for name, actors in rehearsal.cast.groups.items():
        worked = {
            part: sum(each.worked[part].get(name, 0.0) for each in times if part in each.worked) for part in PARTS
        }
        idle = {part: max(parts[part] * count - worked[part], 0.0) / total for part in PARTS}
        groups[name] = GroupTime(len(actors), sum(worked.values()) / total, idle)
    tokens = sum(each.response_tokens for each in times) / count
    return Forecast(total / count, parts, _spent(rehearsal), groups, gpus, tokens)


def _spent(rehearsal: Rehearsal) -> dict[str, float]:
    """Over all simulated steps, by kind of work: the actor of a group that spends most, in the mean over its actors."""
    steps, result = len(rehearsal.times), dict[str, float]()
    for actors in rehearsal.cast.groups.values():
        for kind in {kind for actor in actors for kind in actor.spent}:
            mean = sum(actor.spent.get(kind, 0.0) for actor in actors) / len(actors) / steps
            result[kind] = max(result.get(kind, 0.0), mean)
    return result
