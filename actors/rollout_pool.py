"""The rollout pool: deals prompts to workers, and deals again what dead or lagging ones leave."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from actors.group import START_TIMEOUT_S, ActorFailure, get, too_late
from actors.health import Health, Roster
from actors.processes import Processes, kill
from actors.reservation import Reservation
from actors.rollout import WEIGHTS, ChunkInfo, ContinuingWorker, FinishingWorker, PromptRequest
from actors.weight_proofs import WeightProofs
from actors.workforce import Workforce
from castor.config.rollout import Rollout
from castor.config.training import LoRA
from castor.model_reference import ModelLike, ModelReference
from castor.run.actors import rollout_workers
from engines.vllm_arguments import VLLM_ENV
from engines.weights.base import WeightUpdate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """A ref to finished experience, and the scalars the driver knows of it."""

    experience: Any
    info: ChunkInfo


def request_seed(*parts: int | str) -> int:
    """A 31-bit seed that depends on nothing but `parts`: the run's seed, the step, the prompt, the sample."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass
class Job:
    """Requests that were dealt together."""

    unfinished: set[int]  # uids; the job is done when it is empty
    decode: bool
    oldest: int  # no token may be sampled by a version older than this
    overdue: int = 0  # responses that were dropped because one was


@dataclass(frozen=True)
class _Dealt:
    """What one worker samples in one stream, and has not handed on yet."""

    worker: ActorHandle
    job: Job
    waiting: dict[int, PromptRequest]  # by uid


class RolloutPool:
    """Workers that hold the same weights.

    A worker that dies is replaced, at most `max_worker_restarts` times in all; what it had not handed on is sampled
    again by the others, with the same seeds. A replacement is stale until a verified transfer gives it the weights.

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
    ) -> None:
        """Start the workers where they are reserved, without waiting for them; `wait_ready` does.

        Workers that share their GPUs are waited for: vLLM takes what memory it finds free while it starts, and would
        count a neighbour that loads its model meanwhile as its own. `sleeps`: they will be sent to sleep. `lora`: of
        the policy, whose updates are then adapters. `roster`: where the workers' health is noted.
        """
        self.config, self.reservation = config, reservation or Reservation()
        model = ModelReference.of(model)
        self._asked = rollout_workers(model.name, config)
        self._args = (model, config, config.resources.threads, sleeps, lora)
        names, roster = self._asked.rank_names, roster or Roster()
        self._workforce = Workforce("rollout worker", self._start, names, config.max_worker_restarts, roster)
        self._weights = WeightProofs()
        self._streams: dict[Any, _Dealt] = {}
        self._processes: dict[ActorHandle, Processes] = {}
        self.republish: Callable[[], WeightUpdate] | None = None  # see `_latest`
        if self.reservation.shares(self._asked):
            self.wait_ready()

    def _start(self, number: int) -> ActorHandle:
        options = self.reservation.options(self._asked, number, **VLLM_ENV)
        worker = ContinuingWorker if self._continues else FinishingWorker
        return cast(Any, worker).options(**options).remote(*self._args)

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
        get(ready, START_TIMEOUT_S, "a rollout worker (starting vLLM)")
        self._workforce.note(self.workers, Health.HEALTHY)

    def generate(self, requests: Sequence[PromptRequest], decode: bool = False) -> Iterator[Chunk]:
        """Chunks as they finish, every uid exactly once, however many workers die on the way.

        A response counts as finished when its chunk has arrived. Raises ActorFailure when no worker is left, or when
        nothing arrives for timeout_s.
        """
        job = self.submit(requests, decode)
        while job.unfinished:
            arrived = self.wait()
            if arrived is not None and arrived[0] is job:
                yield arrived[1]

    def submit(self, requests: Sequence[PromptRequest], decode: bool = False, oldest: int = 0) -> Job:
        """Deal requests to the workers; `wait` or `handle` gives their chunks.

        A chunk with a token sampled by a version before `oldest` is dropped, and its prompts are sampled again.
        """
        job = Job({request.uid for request in requests}, decode, oldest)
        if len(job.unfinished) != len(requests):
            raise ValueError("two requests of one call share a uid")
        self._deal(requests, job)
        return job

    def abandon(self) -> None:
        """Forget what was dealt: whatever the workers still make of it goes nowhere."""
        self._streams = {}

    @property
    def events(self) -> list[Any]:
        """What to `ray.wait` for while this pool has work: each goes to `handle` when it is ready."""
        return [*self._weights.pending, *self._streams]

    def wait(self) -> tuple[Job, Chunk] | None:
        """`handle` of the next event. Raises ActorFailure when there is none for timeout_s, or no worker is left."""
        ready, _ = ray.wait(self.events, num_returns=1, timeout=self.config.timeout_s)
        if not ready:
            open_prompts = sum(len(dealt.waiting) for dealt in self._streams.values())
            raise ActorFailure(
                f"no rollout worker finished a response within {self.config.timeout_s:.0f} s "
                f"({open_prompts} prompts open): see the run's logs"
            )
        return self.handle(ready[0])

    def handle(self, event: Any) -> tuple[Job, Chunk] | None:
        """Deal with something that has happened; a chunk and its job, if it was a chunk that may be used."""
        if event in self._weights.pending:
            self._verify(event)
            return None
        dealt = self._streams[event]
        try:
            chunk = self._next_chunk(event)
        except RayActorError as error:
            del self._streams[event]
            self._replace(dealt.worker, error)
            self._deal(list(dealt.waiting.values()), dealt.job)
            return None
        if chunk is None:
            del self._streams[event]
            if dealt.waiting:
                raise ActorFailure(f"{len(dealt.waiting)} prompts were never answered: a rollout stream ended early")
            return None
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
        for worker in self.workers:
            if worker not in self._processes:
                method: Any = worker.processes
                if self._continues:
                    method = method.options(concurrency_group=WEIGHTS)
                self._processes[worker] = get(method.remote(), START_TIMEOUT_S, "a rollout worker")
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
                self._replace(self._weights.pending[ready[0]].worker, error)
                died()

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
                self._workforce.note([worker], Health.SUSPECT, f"no proof of its weights within {timeout_s:.0f} s")
                kill(self._processes[worker])
                self._replace(worker, too_late(timeout_s, "a rollout worker (receiving weights)"))
        return self._weights.lost or ("an engine was lost" if self.restarts > before else None)

    def stop(self) -> None:
        """Kill all workers."""
        self._workforce.stop()

    def _everywhere(self, method: str, *args: Any) -> None:
        """Call a method of all workers, side by side, and wait for it."""
        calls = {getattr(worker, method).remote(*args): worker for worker in self._workforce.everyone}
        while calls:
            ready, _ = ray.wait(list(calls), timeout=START_TIMEOUT_S)
            if not ready:
                raise too_late(START_TIMEOUT_S, f"a rollout worker ({method})")
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
        for i, worker in enumerate(self.workers):
            share = list(requests[i :: len(self.workers)])
            if share:
                stream = cast(Any, worker).generate.options(num_returns="streaming").remote(share, job.decode)
                self._streams[stream] = _Dealt(worker, job, {request.uid: request for request in share})

    def _next_chunk(self, stream: Any) -> Chunk | None:
        """The next chunk of a ready stream; None at its end. A stream yields experience and info in turn."""
        try:
            experience = next(stream)
        except StopIteration:
            return None
        ray.wait([stream], timeout=self.config.timeout_s)
        try:
            info = next(stream)
        except StopIteration:
            ray.get(experience, timeout=self.config.timeout_s)  # the last object of a failed stream is its error
            raise ActorFailure("a rollout stream ended in the middle of a chunk") from None
        return Chunk(experience, ray.get(info, timeout=self.config.timeout_s))

    def _may_use(self, info: ChunkInfo, dealt: _Dealt) -> bool:
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
        job.unfinished.difference_update(info.uids)
        return True

    def _verify(self, proof: Any) -> None:
        worker = self._weights.pending[proof].worker
        try:
            self._weights.check(proof)
        except RayActorError as error:
            self._replace(worker, error)
        else:
            if worker in self.workers and self._weights.lost is None:
                self._workforce.note([worker], Health.HEALTHY)

    def _replace(self, worker: ActorHandle, error: Exception) -> bool:
        replaced = self._workforce.replace(worker, error)
        if replaced:
            self._weights.forget(worker)
        return replaced

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
