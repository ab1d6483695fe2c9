"""What the workers of a rollout pool sample: requests that are dealt to them, and the chunks that stream back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.group import ActorFailure, too_late
from actors.jobs import Chunk, Dealt, Job, deal_requests
from actors.recording import of_step
from actors.rollout import PromptRequest
from actors.suspects import DeadlyPrompt, Suspects


class Streams:
    """One for every call of a worker, which serves its calls one after the other.

    Requests that were there at the deaths of workers are held until some worker owes nothing, and sampled alone: no
    other prompt can then be what it dies of.
    """

    def __init__(self, timeout_s: float) -> None:
        """A chunk that has begun to arrive is there within `timeout_s`."""
        self.timeout_s = timeout_s
        self.dealt: dict[Any, Dealt] = {}  # by stream; those of one worker in the order in which it serves them
        self._held: list[tuple[PromptRequest, Job]] = []
        self._suspects = Suspects()

    def deal(self, requests: Sequence[PromptRequest], job: Job, workers: Sequence[ActorHandle]) -> None:
        """To all workers alike, but for what is to be sampled alone."""
        self._held += [(request, job) for request in requests if self._suspects.alone(request)]
        together = [request for request in requests if not self._suspects.alone(request)]
        if together:
            for worker, share in zip(workers, deal_requests(together, len(workers)), strict=True):
                self._begin(worker, share, job)
        self._deal_held(workers)

    def answered(self, requests: Sequence[PromptRequest], workers: Sequence[ActorHandle]) -> None:
        """These have an answer that may be used: they killed nobody, and what was held may be dealt."""
        for request in requests:
            self._suspects.clear(request)
        self._deal_held(workers)

    def owed(self, worker: ActorHandle) -> list[list[PromptRequest]]:
        """What a worker has not handed on yet, stream by stream in the order in which it serves them."""
        return [list(each.waiting.values()) for each in self.dealt.values() if each.worker == worker and each.waiting]

    def owing(self) -> set[ActorHandle]:
        """The workers that have not handed on everything."""
        return {dealt.worker for dealt in self.dealt.values() if dealt.waiting}

    def note_death(self, worker: ActorHandle) -> DeadlyPrompt | None:
        """A worker has died; the prompt that it died of, if that is known now."""
        return self._suspects.note_death(self.owed(worker))

    def next_chunk(self, stream: Any) -> Chunk | None:
        """The next chunk of a ready stream; None at its end. A stream yields experience and info in turn.

        Raises RayActorError when its worker has died, Stalled when no more than a part of a chunk comes.
        """
        try:
            experience = next(stream)
        except StopIteration:
            return None
        if not ray.wait([stream], timeout=self.timeout_s)[0]:
            raise too_late(self.timeout_s, "a rollout worker (in the middle of a chunk)")
        try:
            info = next(stream)
        except StopIteration:
            ray.get(experience, timeout=self.timeout_s)  # the last object of a failed stream is its error
            raise ActorFailure("a rollout stream ended in the middle of a chunk") from None
        return Chunk(experience, ray.get(info, timeout=self.timeout_s))

    def end(self, stream: Any) -> list[PromptRequest]:
        """Forget a stream that has ended; what was to come of it."""
        return list(self.dealt.pop(stream).waiting.values())

    def abandon(self) -> None:
        """Forget what was dealt: whatever the workers still make of it goes nowhere."""
        self.dealt, self._held = {}, []

    def _deal_held(self, workers: Sequence[ActorHandle]) -> None:
        """One suspect's requests to each worker that owes nothing."""
        for worker in workers:
            if not self._held:
                return
            if not self.owed(worker):
                suspect, job = self._held[0]
                its = [each for each, of in self._held if of is job and each.prompt is suspect.prompt]
                self._held = [each for each in self._held if each[1] is not job or each[0] not in its]
                self._begin(worker, its, job)

    def _begin(self, worker: ActorHandle, requests: Sequence[PromptRequest], job: Job) -> None:
        if requests:
            method = of_step(worker, "generate", job.step, num_returns="streaming")
            stream = method.remote(requests, job.decode)
            self.dealt[stream] = Dealt(worker, job, {request.uid: request for request in requests})
