"""The rollout pool: deals prompts to workers, replaces those that die, and keeps all on one verified policy version."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from actors.group import START_TIMEOUT_S, ActorFailure, actor_options, get
from actors.rollout import VLLM_ENV, ChunkInfo, PromptRequest, RolloutWorker
from actors.weights import WeightUpdate
from castor.config.rlhf import Rollout

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


class RolloutPool:
    """Workers that hold the same weights.

    A worker that dies is replaced, at most `max_worker_restarts` times in all; what it had not handed on is sampled
    again by the others, with the same seeds. A replacement is stale until a verified transfer gives it the weights.
    """

    def __init__(self, model: str, config: Rollout, template: str, trust_remote_code: bool = False) -> None:
        """Start the workers without waiting for them; `wait_ready` does."""
        self.config = config
        self.args = (model, config, template, config.resources.threads, trust_remote_code)
        self.restarts = 0
        self.update: WeightUpdate | None = None  # what the workers hold; None: the weights of the model's folder
        self.workers = [self._start() for _ in range(config.workers)]
        self.stale: list[ActorHandle] = []

    def _start(self) -> ActorHandle:
        options = actor_options(self.config.resources, "rollout", **VLLM_ENV)
        return cast(Any, RolloutWorker).options(**options).remote(*self.args)

    def wait_ready(self) -> None:
        """Until every engine is up. Raises ActorFailure when one cannot start."""
        get([worker.ready.remote() for worker in self.workers], START_TIMEOUT_S, "a rollout worker (starting vLLM)")

    def generate(self, requests: Sequence[PromptRequest], decode: bool = False) -> Iterator[Chunk]:
        """Chunks as they finish, every uid exactly once, however many workers die on the way.

        A response counts as finished when its chunk has arrived. Raises ActorFailure when no worker is left, or when
        nothing arrives for timeout_s.
        """
        unfinished = {request.uid: request for request in requests}
        if len(unfinished) != len(requests):
            raise ValueError("two requests of one call share a uid")
        streams = self._deal(requests, decode)
        while streams:
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=self.config.timeout_s)
            if not ready:
                raise ActorFailure(
                    f"no rollout worker finished a response within {self.config.timeout_s:.0f} s "
                    f"({len(unfinished)} prompts open): see the run's logs"
                )
            worker, dealt = streams[ready[0]]
            try:
                chunk = self._next_chunk(ready[0])
            except RayActorError as error:
                del streams[ready[0]]
                self._replace(worker, error)
                streams |= self._deal([request for request in dealt if request.uid in unfinished], decode)
                continue
            if chunk is None:
                del streams[ready[0]]
                continue
            for uid in chunk.info.uids:
                del unfinished[uid]
            yield chunk
        if unfinished:
            raise ActorFailure(f"{len(unfinished)} prompts were never answered: a rollout stream ended early")

    def load_weights(self, update: WeightUpdate) -> None:
        """Give every worker, replacements included, the weights of `update`; each proves version and digest.

        Raises RuntimeError when a worker holds anything else, ActorFailure when it does not answer.
        """
        self.update = update
        self.workers, self.stale = self.workers + self.stale, []
        answers: list[Any] = [worker.load_weights.remote(update) for worker in self.workers]
        for worker, answer in zip(self.workers, answers, strict=True):
            self._verify(worker, answer, update)

    def _verify(self, worker: ActorHandle, answer: Any, update: WeightUpdate) -> None:
        try:
            proof = ray.get(answer, timeout=START_TIMEOUT_S)
        except RayActorError as error:
            self._replace(worker, error)
            return
        if proof != (update.version, update.digest):
            raise RuntimeError(
                f"a rollout worker holds version {proof[0]} with digest {proof[1]} after the transfer of version "
                f"{update.version} with digest {update.digest}: the weights did not arrive"
            )

    def _deal(
        self, requests: Sequence[PromptRequest], decode: bool
    ) -> dict[Any, tuple[ActorHandle, list[PromptRequest]]]:
        if requests and not self.workers:
            self._admit_stale()
        shares = [list(requests[i :: len(self.workers)]) for i in range(len(self.workers))]
        pairs = [(worker, share) for worker, share in zip(self.workers, shares, strict=True) if share]
        return {
            worker.generate.options(num_returns="streaming").remote(share, decode): (worker, share)
            for worker, share in pairs
        }

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

    def _replace(self, worker: ActorHandle, error: RayActorError) -> None:
        self.workers = [other for other in self.workers if other != worker]
        self.restarts += 1
        if self.restarts > self.config.max_worker_restarts:
            raise ActorFailure(
                f"rollout workers died {self.restarts} times, more than max_worker_restarts allows; the last: {error}"
            ) from error
        log.warning("a rollout worker died and is being replaced (%d so far): %s", self.restarts, error)
        self.stale.append(self._start())

    def _admit_stale(self) -> None:
        """Bring the replacements to the current version now: nobody else is left."""
        if self.update is not None:
            self.load_weights(self.update)
        else:  # no transfer has taken place yet: the model's folder holds the current weights
            self.workers, self.stale = self.stale, []
            self.wait_ready()

    def stop(self) -> None:
        """Kill all workers."""
        for worker in self.workers + self.stale:
            ray.kill(worker)
