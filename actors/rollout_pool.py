"""The rollout pool: deals prompts to workers, and deals again what dead or lagging ones leave."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from actors.group import START_TIMEOUT_S, ActorFailure, Stalled, get, has_died, too_late
from actors.handover import Handover
from actors.health import Health, Roster
from actors.jobs import Chunk, Dealt, Job
from actors.nodes import wait_for_word
from actors.processes import Processes, kill, show_stacks
from actors.reservation import Reservation
from actors.rollout import ChunkInfo, ContinuingWorker, FinishingWorker, PromptRequest
from actors.startup import Beginning
from actors.streams import Streams
from actors.weight_proofs import WeightProofs
from actors.workforce import Workforce
from castor.config.rollout import Rollout
from castor.config.training import LoRA
from castor.model_reference import ModelLike, ModelReference
from castor.run.actors import rollout_workers
from engines.vllm_arguments import ROLLOUT_ENV
from engines.weights.base import WeightUpdate

log = logging.getLogger(__name__)
ANSWER_S = 5.0  # within which a worker that is up has said what its processes are


class RolloutPool:
    """Workers that hold the same weights.

    A worker that dies is replaced, at most `max_worker_restarts` times in all where its node is still there; what it
    had not handed on is sampled again by the others, with the same seeds. Where no response arrives for `timeout_s`,
    the workers that owe one show where they are stuck, are ended, and are dead like others. A replacement is stale
    until a verified transfer gives it the weights. A prompt that kills whoever samples it is found, and `DeadlyPrompt`
    raised.

    Jobs may be dealt while others are sampled, and weights sent meanwhile. Where running responses finish on the old
    weights (`on_new_weights: finish`), every worker serves its calls in order: what is dealt after weights were sent
    is sampled with them. Where they continue on the new ones, weights overtake, and count once all have proven them.
    """

    def __init__(
        self,
        model: ModelLike,
        config: Rollout,
        reservation: Reservation | None = None,
        sleeps: bool = False,
        lora: LoRA | None = None,
        roster: Roster | None = None,
        beginning: Beginning | None = None,
        handover: Handover | None = None,
    ) -> None:
        """Start the workers where they are reserved, without waiting for them; `wait_ready` does.

        Workers that share their GPUs are waited for: vLLM takes what memory it finds free while it starts, and would
        count a neighbour that loads its model meanwhile as its own. A replacement, whose neighbours are at work, does
        not measure: it gets a cache of the size that was found then. `sleeps`: they will be sent to sleep. `lora`: of
        the policy, whose updates are then adapters. `roster`: where the workers' health is noted; `beginning`: where
        their start and their first token are. `handover`: from which workers may be had that another pool has left;
        they hold other weights until the first update.
        """
        self.config, self.reservation = config, reservation or Reservation()
        self.beginning, self._asked_at = beginning or Beginning(), time.time()
        model = ModelReference.of(model)
        self._asked = rollout_workers(model.name, config)
        self._model, self._args = model, (config.resources.threads, sleeps, lora)
        self._sized = config  # with the size of the caches, once the engines are up
        names, roster = self._asked.rank_names, roster or Roster()
        self._processes: dict[ActorHandle, Any] = {}  # refs to `Processes`
        self._handover = handover or Handover()
        taken = self._handover.take((self._model, self._args))
        self._processes |= {worker: cast(Any, worker).processes.remote() for worker in taken}
        self._workforce = Workforce("rollout worker", self._start, names, config.max_worker_restarts, roster, taken)
        self.taken = bool(taken)
        self._weights = WeightProofs()
        self._streams = Streams(config.timeout_s)
        self._ready = deque[Any]()  # events to be handled, as far as they still are any
        self.republish: Callable[[], WeightUpdate] | None = None  # see `_latest`
        if self.reservation.shares(self._asked):
            self.wait_ready()

    def _start(self, number: int) -> ActorHandle:
        options = self.reservation.options(self._asked, number, **ROLLOUT_ENV)
        kind: Any = ContinuingWorker if self._continues else FinishingWorker
        worker = kind.options(**options).remote(self._model, self._sized, *self._args)
        self._processes[worker] = worker.processes.remote()  # the first call that it serves
        return cast(ActorHandle, worker)

    @property
    def _continues(self) -> bool:
        return self.config.on_new_weights == "continue"

    @property
    def workers(self) -> list[ActorHandle]:
        """Those that sample."""
        return self._workforce.working

    @property
    def restarts(self) -> int:
        """How many workers have been replaced."""
        return self._workforce.restarts

    @property
    def update(self) -> WeightUpdate | None:
        """What the workers were sent last; None: they hold the weights of the model's folder."""
        return self._weights.update

    @property
    def version(self) -> int:
        """A job dealt now is sampled with this version or a later one."""
        return self._weights.version

    def wait_ready(self) -> None:
        """Until every engine is up. Raises ActorFailure when one cannot start."""
        ready = [cast(Any, worker).ready.remote() for worker in self.workers]
        starts = [cast(Any, worker).startup.remote() for worker in self.workers]
        sizes = [cast(Any, worker).cache_mib.remote() for worker in self.workers]
        get(ready, START_TIMEOUT_S, "a rollout worker (starting vLLM)")
        if not self.taken:
            self.beginning.ready(self._asked.name, self._asked_at, get(starts, START_TIMEOUT_S, "a rollout worker"))
        self._sized = self.config.model_copy(
            update={"kv_cache_mib": min(get(sizes, START_TIMEOUT_S, "a rollout worker"))}
        )
        self._workforce.note(self.workers, Health.HEALTHY)

    def generate(self, requests: Sequence[PromptRequest], decode: bool = False) -> Iterator[Chunk]:
        """Chunks as they finish, every uid exactly once, however many workers die on the way.

        A response counts as finished when its chunk has arrived. Raises ActorFailure when too many workers died or were
        stuck, DeadlyPrompt when one prompt is to blame.
        """
        job = self.submit(requests, decode)
        while job.unfinished:
            arrived = self.wait()
            if arrived is not None and arrived[0] is job:
                yield arrived[1]

    def submit(
        self, requests: Sequence[PromptRequest], decode: bool = False, oldest: int = 0, step: int | None = None
    ) -> Job:
        """Deal requests to the workers; `wait` or `handle` gives their chunks.

        A chunk with a token sampled by a version before `oldest` is dropped, and its prompts are sampled again.
        `step`: that they are sampled for.
        """
        job = Job({request.uid for request in requests}, decode, step, oldest)
        if len(job.unfinished) != len(requests):
            raise ValueError("two requests of one call share a uid")
        self._deal(requests, job)
        return job

    def abandon(self) -> None:
        """Forget what was dealt: whatever the workers still make of it goes nowhere."""
        self._streams.abandon()

    def next_event(self, timeout_s: float, others: Sequence[Any] = ()) -> Any | None:
        """One of `others` that is ready, or something for `handle`; None: nothing happens within `timeout_s`.

        Everything that is ready is asked for at once: to look at the streams of all workers for every chunk would cost
        more the more workers there are. Chunks come first: what a worker has answered is read before its death is
        judged by what it owes.
        """
        while self._ready:
            event = self._ready.popleft()
            if event in self._streams.dealt or event in self._weights.pending:
                return event
        events = [*others, *self._streams.dealt, *self._weights.pending]
        ready, _ = ray.wait(events, num_returns=1, timeout=timeout_s)
        if ready and len(events) > 1:
            ready, _ = ray.wait(events, num_returns=len(events), timeout=0)
        self._ready.extend(event for event in ready[1:] if event not in others)
        return ready[0] if ready else None

    def wait(self) -> tuple[Job, Chunk] | None:
        """`handle` of the next event. Workers that owe one and are silent for timeout_s are replaced.

        Raises ActorFailure when that was one too many.
        """
        event = self.next_event(self.config.timeout_s)
        if event is not None:
            return self.handle(event)
        for worker in self._streams.owing() or {owed.worker for owed in self._weights.pending.values()}:
            self._end(worker, too_late(self.config.timeout_s, "a rollout worker (sampling)"))
        return None

    def handle(self, event: Any) -> tuple[Job, Chunk] | None:
        """Deal with something that has happened; a chunk and its job, if it was a chunk that may be used."""
        if event in self._weights.pending:
            self._verify(event)
            return None
        dealt = self._streams.dealt[event]
        try:
            chunk = self._streams.next_chunk(event)
        except (RayActorError, Stalled) as error:
            if isinstance(error, Stalled):
                self._end(dealt.worker, error)
            else:
                self._replace(dealt.worker, error)
            self._deal(self._streams.end(event), dealt.job)
            return None
        if chunk is None:
            if unanswered := self._streams.end(event):
                raise ActorFailure(f"{len(unanswered)} prompts were never answered: a rollout stream ended early")
            return None
        self.beginning.first("token" if chunk.info.first_token else "response", chunk.info.first_token)
        return (dealt.job, chunk) if self._may_use(chunk.info, dealt) else None

    def load_weights(self, update: WeightUpdate) -> None:
        """Give every worker, replacements included, the weights of `update`; each proves version and digest.

        Raises RuntimeError when a worker holds anything else, ActorFailure when it does not answer.
        """
        self.send_weights(update)
        while self._weights.pending:
            self._verify(next(iter(self._weights.pending)))

    def send_weights(self, update: WeightUpdate) -> None:
        """`load_weights` without waiting: the proofs are events. Running responses do as `on_new_weights` says."""
        self._workforce.admit_stale()
        self._weights.send(self.workers, update, overtake=self._continues)

    def sleep(self, keep_weights: bool) -> None:
        """Every worker gives up its GPU's memory; one that has died is replaced, and its replacement does the same.

        Nothing is being sampled. Without `keep_weights` the workers have none until the next update.
        """
        self._everywhere("sleep", keep_weights)

    def wake(self) -> None:
        """Every worker takes its GPU's memory again; one that has died is replaced."""
        self._everywhere("wake")

    def admit_ready(self) -> list[ActorHandle]:
        """All workers that are up, replacements included. Where none is at work, wait for one.

        Raises ActorFailure when none comes up.
        """
        self._workforce.admit_ready()
        if not self.workers:
            raise too_late(START_TIMEOUT_S, "a rollout worker (starting vLLM)")
        return self.workers

    def announce(self, update: WeightUpdate, sent: Any) -> None:
        """Have every worker receive what is being sent to all of them; `sent` is a ref to what its sender says of it.

        The proofs are events, and `settle` waits for them.
        """
        self._weights.send(self.workers, update, overtake=self._continues, sent=sent)

    def watch(self, sending: Sequence[Any], timeout_s: float, died: Callable[[], None]) -> None:
        """Until all refs of `sending` are there: a worker that dies meanwhile is replaced, and `died` is called.

        Raises ActorFailure when they are not within `timeout_s`.
        """
        refs, deadline = {*sending, *self._weights.pending}, time.monotonic() + timeout_s
        while refs.intersection(sending):
            ready, _ = ray.wait(list(refs), num_returns=1, timeout=max(deadline - time.monotonic(), 0.0))
            if not ready:
                raise too_late(timeout_s, "the learner (sending weights)")
            refs.discard(ready[0])
            if ready[0] in self._weights.pending and (error := self._weights.death(ready[0])) is not None:
                died()
                self._replace(self._weights.pending[ready[0]].worker, error)

    def settle(self, timeout_s: float) -> str | None:
        """Wait for the proofs that are owed, and replace whoever does not answer within `timeout_s`.

        Returns why somebody has not got the weights; None: everybody has proven them. Raises RuntimeError when a worker
        holds anything else, ActorFailure when too many were lost.
        """
        before, deadline = self.restarts, time.monotonic() + timeout_s
        while pending := self._weights.pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=max(deadline - time.monotonic(), 0.0))
            if ready:
                self._verify(ready[0])
                continue
            for worker in {owed.worker for owed in pending.values()}:
                self._end(worker, too_late(timeout_s, "a rollout worker (receiving weights)"))
        return self._weights.lost or ("an engine was lost" if self.restarts > before else None)

    def stop(self, leave: bool = False) -> None:
        """Kill all workers; or `leave` them to the next stage, where it wants the same ones and they have no work."""
        workers = self._workforce.whole if leave and self._handover.stays else None
        if workers is None or not self._at_rest():
            self._workforce.stop()
            return
        self._workforce.note(workers, Health.RETIRED)
        self._handover.leave(workers, (self._model, self._args), self.reservation.group)
        log.info("%d rollout workers stay for the next stage", len(workers))

    def _at_rest(self) -> bool:
        """Whether all responses and proofs have come; not where engines sleep, which may have no weights."""
        _, sleeps, _ = self._args
        if sleeps or self._streams.owing():
            return False
        owed = list(self._weights.pending)
        return not owed or len(ray.wait(owed, num_returns=len(owed), timeout=ANSWER_S)[0]) == len(owed)

    def _everywhere(self, method: str, *args: Any) -> None:
        """Call a method of all workers, side by side, and wait for it."""
        calls = {getattr(worker, method).remote(*args): worker for worker in self._workforce.everyone}
        while calls:
            ready, _ = ray.wait(list(calls), timeout=START_TIMEOUT_S)
            if not ready:
                error = too_late(START_TIMEOUT_S, f"a rollout worker ({method})")
                silent = [worker for worker in calls.values() if worker in self.workers]
                if not silent:
                    raise error  # a replacement does not come up
                for worker in silent:
                    self._end(worker, error)
                continue
            worker = calls.pop(ready[0])
            try:
                ray.get(ready[0], timeout=self.config.timeout_s)
            except RayActorError as error:
                if self._replace(worker, error) and method == "sleep":
                    newest = cast(Any, self._workforce.stale[-1])  # it will come up awake
                    calls[newest.sleep.remote(*args)] = newest

    def _deal(self, requests: Sequence[PromptRequest], job: Job) -> None:
        if requests and not self.workers:
            self._bring_in_replacements()
        self._streams.deal(requests, job, self.workers)

    def _may_use(self, info: ChunkInfo, dealt: Dealt) -> bool:
        """Whether a chunk is recent enough, and from weights that were proven. If not, it is sampled again."""
        requests, job = [dealt.waiting.pop(uid) for uid in info.uids], dealt.job
        for proof in self._weights.due(dealt.worker, info.newest):
            if proof in self._weights.pending:  # until another one shows that the worker has died
                self._verify(proof)
        if dealt.worker not in self.workers:
            self._deal(requests, job)  # it died before it could prove what it held
            return False
        if info.oldest < job.oldest:
            assert self.update is not None  # version 0 is not older than anything
            log.warning("%d responses of version %d are overdue and sampled again", len(requests), info.oldest)
            job.overdue += len(requests)
            self.load_weights(self._latest(self.update))  # brings a worker that lags behind to the newest version
            self._deal(requests, job)
            return False
        self._streams.answered(requests, self.workers)
        job.unfinished.difference_update(info.uids)
        return True

    def _verify(self, proof: Any) -> None:
        worker = self._weights.pending[proof].worker
        try:
            self._weights.check(proof)
        except RayActorError as error:
            self._replace(worker, error)
        except Stalled as error:
            self._end(worker, error)
        else:
            if worker in self.workers and self._weights.lost is None:
                self._workforce.note([worker], Health.HEALTHY)

    def _end(self, worker: ActorHandle, error: Stalled) -> None:
        """A worker is silent: have it show where it is stuck, end it, and replace it."""
        if worker not in self.workers:
            return
        self._workforce.note([worker], Health.SUSPECT, f"{error}; its stacks follow")
        ready, _ = ray.wait([self._processes[worker]], timeout=ANSWER_S)
        if ready:
            processes: Processes = get(ready[0], ANSWER_S, "a rollout worker")
            show_stacks(processes)
            kill(processes)
        else:  # it is not even up
            ray.kill(worker)
        self._replace(worker, error)

    def _replace(self, worker: ActorHandle, error: Exception) -> bool:
        """Replace a worker that has died; False when that was done before.

        Raises DeadlyPrompt when a prompt is known to have killed it. The death does not count as a worker's then, nor
        where its node is gone, which is no prompt's doing either.
        """
        if worker not in self.workers:
            return False
        deadly = None
        if self._is_gone_with_its_node(worker):
            self._workforce.excused += 1
        elif (deadly := self._streams.note_death(worker)) is not None:
            self._workforce.excused += deadly.deaths
        self._workforce.replace(worker, error)
        self._weights.forget(worker)
        del self._processes[worker]
        if deadly is not None:
            raise deadly
        return True

    def _is_gone_with_its_node(self, worker: ActorHandle) -> bool:
        """Of a worker that has died, once it is known; False also of one that was never up."""
        known, _ = ray.wait([self._processes[worker]], timeout=0)
        if not known or has_died(known[0]):
            return False
        return bool(wait_for_word([get(known[0], ANSWER_S, "a rollout worker").node]))

    def _latest(self, update: WeightUpdate) -> WeightUpdate:
        """`update`, or, where it can be had no more since it went to all who were there, what `republish` makes."""
        return update if self.republish is None else self.republish()

    def _bring_in_replacements(self) -> None:
        """No worker is left but replacements: bring them to the current version, however long it takes."""
        if self.update is not None:
            self.load_weights(self._latest(self.update))
        else:  # no transfer has taken place yet: the model's folder holds the current weights
            self._workforce.admit_stale()
            self.wait_ready()
