"""All actor groups of one RLHF run: started side by side, stopped together."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray

from actors.group import START_TIMEOUT_S, ActorFailure, ActorGroup, get, has_died, join_each
from actors.handover import Handover
from actors.health import Health, Roster
from actors.learner import LearnerWorker
from actors.multipliers import MultiplierOwner
from actors.nodes import DEATH_S, wait_for_word
from actors.processes import Processes, kill, show_stacks
from actors.recording import of_step
from actors.reference import ReferenceWorker
from actors.reservation import Reservation
from actors.rollout_pool import RolloutPool
from actors.signal import SignalModels, SignalWorker
from actors.startup import Beginning
from castor.config.rlhf import RLHF
from castor.data.rows.schemas import QARow
from castor.model_reference import ModelLike, ModelReference
from castor.run.actors import Actors
from trainers.rlhf.turns import Turns

log = logging.getLogger(__name__)
PLACED_S = 0.5  # within which an actor that was started long ago answers
ANSWER_S = 10.0  # within which an actor that is idle answers


@dataclass(frozen=True)
class Part:
    """How one group is made: what it starts, and what its models are loaded from."""

    actors: Actors
    actor_class: Any
    arguments: tuple[Any, ...]  # of its `load`
    title: str  # for messages
    trains: bool  # whether its ranks form a process group


class Groups:
    """The actor groups, ready to work. Use as a context manager: leaving it kills every actor, but for rollout workers
    that the next stage takes.
    """

    def __init__(
        self,
        config: RLHF,
        *,
        actors: Mapping[str, Actors],
        reservation: Reservation,
        policy: ModelLike,
        signals: Mapping[str, SignalModels],
        limits: Mapping[str, float],
        template: str,
        seed: int,
        ptx_rows: Sequence[QARow] | None,
        multipliers_file: Path,
        beginning: Beginning | None = None,
        handover: Handover | None = None,
    ) -> None:
        """Start everything at once (imports dominate) and wait until all models are loaded.

        Args:
            config: the run.
            actors: what the stage starts, by name.
            reservation: where they go.
            policy: the policy's and the reference's weights.
            signals: what each signal's judge and critic are made from.
            limits: limit of each constraint, in the unit of its statistic.
            template: prompt format.
            seed: of this run.
            ptx_rows: demonstrations of the PTX loss, where it is on.
            multipliers_file: where the multipliers keep their state.
            beginning: of the stage, where it is noted what the start of each group took.
            handover: from the stage before, and to the next one.

        """
        policy = ModelReference.of(policy)
        self.config, self.reservation = config, reservation
        self.roster, self.beginning = Roster(), beginning or Beginning()
        self.beginning.lap("data")
        sleeps, lora = config.colocate, config.sampled_adapter
        self.rollout = RolloutPool(
            policy, config.rollout, reservation, sleeps, lora, self.roster, self.beginning, handover
        )
        learns = (policy, config, seed, template, ray.put(ptx_rows))
        self.parts = {"learner": Part(actors["learner"], LearnerWorker, learns, "learner", trains=True)}
        for name in config.signals:
            arguments = (name, signals[name], config, seed, limits.get(name))
            asked = actors[f"signal-{name}"]
            self.parts[asked.name] = Part(asked, SignalWorker, arguments, asked.name, trains=True)
        if "reference" in actors:
            frozen = Part(actors["reference"], ReferenceWorker, (policy, config), "the reference policy", trains=False)
            self.parts["reference"] = frozen
        self._groups = {name: self._start(name) for name in self.parts}
        self._processes: dict[str, list[Processes]] = {}
        self._waiting: dict[str, ActorGroup] = {}  # for a place, while the rest of their group works
        self.multipliers: Any = None
        if "MultiplierOwner" in actors:
            (name,), asked_at = actors["MultiplierOwner"].rank_names, time.time()
            options = reservation.env(name) | {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 3}
            self.multipliers = (
                ray.remote(MultiplierOwner).options(**options).remote(config, dict(limits), multipliers_file)
            )
        self._join(list(self.parts))
        self._load(list(self.parts))
        self.rollout.wait_ready()
        if self.multipliers is not None:
            start = get(self.multipliers.startup.remote(), START_TIMEOUT_S, "the multiplier owner")
            self.beginning.ready("MultiplierOwner", asked_at, [start])
        self.beginning.lap("actors")
        self.turns = Turns(self)

    def group(self, name: str) -> ActorGroup:
        """The one of that name, a key of `parts`."""
        return self._groups[name]

    @property
    def learner(self) -> ActorGroup:
        """The policy's ranks."""
        return self._groups["learner"]

    @property
    def signals(self) -> dict[str, ActorGroup]:
        """The judges' groups, by signal."""
        return {name: self._groups[f"signal-{name}"] for name in self.config.signals}

    @property
    def reference(self) -> ActorGroup | None:
        """The frozen policy's replicas; None where the learner answers for them."""
        return self._groups.get("reference")

    def lost(self) -> tuple[list[str], bool]:
        """The groups of which an actor has died, and whether a node of these actors has, once that is known."""
        asked = {
            handle.__ray_ready__.remote(): (name, rank)
            for name, group in self._groups.items()
            for rank, handle in enumerate(group.handles)
        }
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=DEATH_S)
        dead = [asked[ref] for ref in answered if has_died(ref)]
        for name, rank in dead:
            self._note(name, Health.DEAD, ranks=[rank])
        # not known of one that died before it could load its model
        nodes = {each.node for name, rank in dead for each in self._processes[name][rank : rank + 1]}
        return list(dict.fromkeys(name for name, _ in dead)), bool(wait_for_word(nodes))

    def end_silent(self) -> list[str]:
        """End the actors that do not answer, once they have shown where they are stuck; returns of which groups.

        Those that others wait for go first: once they have ended, the others may answer.
        """
        ended = []
        for name, group in reversed(self._groups.items()):
            asked = {handle.__ray_ready__.remote(): rank for rank, handle in enumerate(group.handles)}
            _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
            for rank in (asked[ref] for ref in silent):
                self._note(name, Health.SUSPECT, "no answer; its stacks follow", ranks=[rank])
                show_stacks(self._processes[name][rank])
                kill(self._processes[name][rank])
                ended.append(name)
        return ended

    def restart(self, names: Sequence[str]) -> None:
        """Start groups anew, where they are reserved; their models are as at the beginning.

        A group goes on with fewer ranks where not all of them have a process within `learner.rejoin_s`, or twice the
        time that the first one took, as when a node is gone. Raises ActorFailure when none of them comes up.
        """
        for name in names:
            self._note(name, Health.RETIRED)  # also those that live
            self._groups[name].stop()
            self._waiting.pop(name, ActorGroup(name, [])).stop()
            self._groups[name] = self._start(name)
        for name in names:
            self._go_on_with_those_that_come(name)
        self._join(names)
        self.turns.back(group for name, group in self._groups.items() if name not in names)
        self._load(names)

    def grown(self) -> list[str]:
        """The groups with too few ranks whose missing ones could be placed by now: a restart makes them whole."""
        found = []
        for name, group in self._waiting.items():
            up = [handle.__ray_ready__.remote() for handle in group.handles]
            if len(ray.wait(up, num_returns=len(up), timeout=PLACED_S)[0]) == len(up):
                found.append(name)
        return found

    def _go_on_with_those_that_come(self, name: str) -> None:
        group, begin = self._groups[name], time.monotonic()
        asked = dict(zip(group.placed, group.handles, strict=True))
        ray.wait(list(asked), num_returns=1, timeout=START_TIMEOUT_S)
        patience = max(self.config.learner.rejoin_s, 2 * (time.monotonic() - begin))  # a process may just be slow
        up, _ = ray.wait(list(asked), num_returns=len(asked), timeout=max(begin + patience - time.monotonic(), 0.0))
        came = [handle for ref, handle in asked.items() if ref in up and not has_died(ref)]
        size = self.config.ranks_within(len(came)) if self.parts[name].trains else len(came)
        if not size:
            seconds = time.monotonic() - begin
            raise ActorFailure(
                f"none of the {len(asked)} actors of {group.name} came up and lived, within {seconds:.0f} s"
            )
        dead = [asked[ref] for ref in up if asked[ref] not in came]  # as where a node had gone and nobody knew yet
        missing = [handle for handle in group.handles if handle not in (*came, *dead)]
        missing += [self._start_one(name, group.handles.index(handle)) for handle in dead]
        ActorGroup(name, came[size:]).stop()
        self._note(name, Health.RETIRED, ranks=range(size, len(came)))
        if missing:
            log.warning("%s goes on with %d of %d ranks: the others find no place", group.name, size, len(asked))
            self._waiting[name] = ActorGroup(name, missing)
        self._groups[name] = ActorGroup(group.name, came[:size], group.asked)

    @property
    def trained(self) -> list[str]:
        """The groups with a part that is trained, or could be."""
        return [name for name, part in self.parts.items() if part.trains]

    def _note(self, name: str, health: Health, why: str = "", ranks: Iterable[int] | None = None) -> None:
        """In which state the actors of a group, or these ranks of it, are now."""
        names = self.parts[name].actors.rank_names
        self.roster.note(names if ranks is None else [names[rank] for rank in ranks], health, why)

    def _start(self, name: str) -> ActorGroup:
        part = self.parts[name]
        self._note(name, Health.STARTING)
        return ActorGroup.start(part.actors, part.actor_class, self.reservation, name=part.title)

    def _start_one(self, name: str, rank: int) -> Any:
        part = self.parts[name]
        started = part.actor_class.options(**self.reservation.options(part.actors, rank)).remote()
        started.prepare.remote()
        return started

    def _join(self, names: Sequence[str]) -> None:
        join_each([self._groups[name] for name in names if self.parts[name].trains], self.config.learner.timeout_s)

    def _load(self, names: Sequence[str]) -> None:
        """Have groups load their models: side by side, or, on GPUs that they share, one after the other."""
        for name in names:
            processes = self._groups[name].call("processes")
            self._processes[name] = get(processes, START_TIMEOUT_S, f"{self._groups[name].name} (starting)")
        loads = [(self._groups[name], self.parts[name].arguments) for name in names]
        if not self.config.colocate:
            loading = [(group, group.call("load", *arguments)) for group, arguments in loads]
            for group, refs in loading:
                get(refs, START_TIMEOUT_S, f"{group.name} (loading its model)")
            self._note_ready(names)
            return
        self.rollout.sleep(keep_weights=True)
        for group, arguments in loads:
            get(group.call("load", *arguments), START_TIMEOUT_S, f"{group.name} (loading its model)")
            get(group.call("occupy", None), START_TIMEOUT_S, f"{group.name} (leaving the GPU)")
        self.rollout.wake()
        self._note_ready(names)

    def _note_ready(self, names: Sequence[str]) -> None:
        for name in names:
            group = self._groups[name]
            starts = get(group.call("startup"), START_TIMEOUT_S, group.name)
            self.beginning.ready(name, group.asked, starts)
            self._note(name, Health.HEALTHY, ranks=range(len(group.handles)))

    def reference_logprobs(self, step: int, number: int, experience: Any) -> Any:
        """A ref to the reference log-probabilities of chunk `number` of a step, a ref to experience.

        A policy with an adapter is its own reference: up to ZeRO-2 the learner's ranks take turns, under ZeRO-3, where
        a forward pass is a collective, all of them share the chunk.
        """
        if self.reference is not None:
            return of_step(round_robin(self.reference.handles, number), "logprobs", step).remote(experience)
        if self.config.learner.engine.zero_stage == 3:
            ranks = [of_step(rank, "reference_logprobs", step) for rank in self.learner.handles]
            answers = [rank.remote(experience) for rank in ranks]
            return answers[0]
        rank = round_robin(self.learner.handles, number)
        return of_step(rank, "reference_logprobs", step).remote(experience)

    def nodes(self) -> dict[str, str]:
        """Which node the first actor of each group runs on."""
        first = {part.actors.name: self._groups[name].handles[0] for name, part in self.parts.items() if part.trains}
        first["rollout"] = self.rollout.workers[0]
        return {name: get(actor.node.remote(), START_TIMEOUT_S, name) for name, actor in first.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rollout.stop(leave=kind is None)
        for name in self.parts:
            self._note(name, Health.RETIRED)
        for group in (*self._groups.values(), *self._waiting.values()):
            group.stop()
        if self.multipliers is not None:
            ray.kill(self.multipliers)


def round_robin(handles: Sequence[Any], number: int) -> Any:
    """The actor that works on chunk `number`: they take turns."""
    return handles[number % len(handles)]
