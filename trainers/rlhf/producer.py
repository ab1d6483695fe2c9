"""The producer of experience: deals prompts to the rollout pool and has every finished chunk scored.

With `max_staleness` 0 it samples when it is asked to. With k it keeps up to k further steps in flight, while the
learner works: `get` waits for others and serves the rollouts meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.group import get, too_late
from actors.jobs import Chunk, Job, request_seed
from actors.recording import of_step
from actors.rollout import PromptRequest
from actors.step_batch import StepBatch
from actors.weight_transfer import WeightTransfer
from castor.config.rlhf import RLHF
from castor.data.tokens.prompt_stream import Prompt, PromptStream
from castor.run.ledger import Entry
from trainers.rlhf.groups import Groups, round_robin


def sample_requests(
    prompts: Sequence[tuple[int, Prompt]], samples_per_prompt: int, seed: int, step: int, attempt: int = 0
) -> list[PromptRequest]:
    """One request per prompt and sample; the seed of each depends on nothing but (seed, step, prompt, sample), and on
    the `attempt` where it is not the first.
    """
    again = (attempt,) if attempt else ()
    return [
        PromptRequest(place * samples_per_prompt + sample, prompt, request_seed(seed, step, index, sample, *again))
        for place, (index, prompt) in enumerate(prompts)
        for sample in range(samples_per_prompt)
    ]


@dataclass
class _Judged:
    """A chunk, and refs to what is said of it."""

    chunk: Chunk
    reference: Any
    scores: dict[str, Any]


@dataclass
class _Growing:
    """The batch of one step while it is sampled and judged."""

    job: Job
    prompts: list[int]  # their numbers, in the order in which they were dealt
    arrived: int = 0  # chunks
    judged: list[_Judged] = field(default_factory=list)
    waiting: list[tuple[int, Chunk]] = field(default_factory=list)  # numbered chunks that are to be judged later

    def whole(self, step: int, attempt: int) -> StepBatch:
        """The batch; the order in which its chunks arrived decides nothing."""
        judged = self._in_order()
        return StepBatch(
            experience=[each.chunk.experience for each in judged],
            reference=[each.reference for each in judged],
            scores={name: [each.scores[name] for each in judged] for name in judged[0].scores},
            step=step,
            attempt=attempt,
        )

    def entry(self, step: int, samples_per_prompt: int, aside: Sequence[int]) -> Entry:
        """What the ledger says of it; `aside` are the prompts that were set aside before it was dealt."""
        responses = []
        for info in (each.chunk.info for each in self._in_order()):
            for uid in sorted(info.uids):
                place, sample = divmod(uid, samples_per_prompt)
                responses.append((uid, (self.prompts[place], sample, info.oldest, info.newest)))
        return Entry(step, tuple(response for _, response in sorted(responses)), tuple(aside))

    def _in_order(self) -> list[_Judged]:
        return sorted(self.judged, key=lambda each: min(each.chunk.info.uids))


class Producer:
    """Batches in the order of the steps. No response in the batch of step t, which updates version t - 1, holds a
    token sampled by a version before t - 1 - max_staleness.
    """

    def __init__(
        self,
        config: RLHF,
        groups: Groups,
        prompts: PromptStream,
        seed: int,
        start: int,
        ledger: Sequence[Entry] = (),
        attempt: int = 0,
    ) -> None:
        """The rollout workers hold, or are about to get, the weights of version `start` - 1; `ledger` ends there.

        `attempt`: see `StepBatch`.
        """
        self.config, self.groups, self.prompts, self.seed = config, groups, prompts, seed
        self.pool, self.staleness = groups.rollout, config.rollout.max_staleness
        self.transfer = WeightTransfer(config, groups.learner, groups.rollout, lambda: groups.turns.to("rollout"))
        self.next_step, self.attempt = start, attempt
        self.growing: dict[int, _Growing] = {}  # by step
        self.waited = {"learner_waited_s": 0.0, "rollout_waited_s": 0.0}
        self.dropped = 0
        self.ledger = list(ledger)  # of the steps whose batches were taken
        self._places: dict[int, dict[str, Any]] = {}  # by step: where the prompt stream stood before it was dealt
        self._idle_since: float | None = time.perf_counter()

    def take(self, step: int) -> StepBatch:
        """The batch of `step`, once it is whole. Steps are taken in order.

        Raises ActorFailure when no worker is left, or when no response arrives for timeout_s.
        """
        begin = time.perf_counter()
        self._deal()
        while step not in self.growing or self.growing[step].job.unfinished:
            self._grow(self.pool.wait())
        self.waited["learner_waited_s"] += time.perf_counter() - begin
        batch = self.growing.pop(step)
        self.groups.turns.to("judging")
        for number, chunk in batch.waiting:
            self._judge(batch, step, number, chunk)
        self.dropped = batch.job.overdue
        told = {prompt for entry in self.ledger for prompt in entry.aside}
        aside = [prompt for prompt in self.prompts.aside if prompt not in told]
        self.ledger.append(batch.entry(step, self.config.samples_per_prompt, aside))
        del self._places[step]
        return batch.whole(step, self.attempt)

    def place(self) -> dict[str, Any]:
        """Where the prompt stream stands for a run that goes on after the step last taken: what was dealt since then,
        and is being sampled, will be dealt again.
        """
        return next(iter(self._places.values()), None) or self.prompts.state_dict()

    def get(self, refs: Sequence[Any], timeout_s: float, what: str) -> Any:
        """`actors.group.get` that has the responses scored that finish meanwhile."""
        deadline, pending = time.monotonic() + timeout_s, list(refs)
        while pending and self.growing:
            event = self.pool.next_event(max(deadline - time.monotonic(), 0.0), pending)
            if event is None:
                raise too_late(timeout_s, what)
            if event in pending:
                pending.remove(event)
            else:
                self._grow(self.pool.handle(event))
        return get(refs, timeout_s, what)

    def publish(self, version: int) -> None:
        """Give the workers the learner's weights; with a staleness of 0, every one has proven them at the return."""
        self.transfer.publish(version, self.get)

    def metrics(self) -> dict[str, float]:
        """Of the step since the last call, where rollout and learning overlap.

        learner_waited_s: in `take`; rollout_waited_s: no response was being sampled, as none was allowed yet;
        dropped_overdue: responses of the batch last taken that were too old and were sampled again.
        """
        self._clock_idleness()
        waited, self.waited = self.waited, dict.fromkeys(self.waited, 0.0)
        return {**waited, "dropped_overdue": float(self.dropped)} if self.staleness else {}

    def _deal(self) -> None:
        """Deal the steps that the workers' version is recent enough for."""
        while self.next_step <= min(self.config.steps, self.pool.version + 1 + self.staleness):
            step, self.next_step = self.next_step, self.next_step + 1
            self._places[step] = self.prompts.state_dict()
            prompts = self.prompts.next_batch()
            requests = sample_requests(prompts, self.config.samples_per_prompt, self.seed, step, self.attempt)
            self._clock_idleness()
            self._idle_since = None
            job = self.pool.submit(requests, oldest=step - 1 - self.staleness, step=step)
            self.growing[step] = _Growing(job, [number for number, _ in prompts])

    def _grow(self, arrived: tuple[Job, Chunk] | None) -> None:
        """A finished chunk is judged, unless others hold the GPUs; weights that have arrived allow further steps."""
        if arrived is not None:
            job, chunk = arrived
            ((step, batch),) = ((step, batch) for step, batch in self.growing.items() if batch.job is job)
            number, batch.arrived = batch.arrived, batch.arrived + 1
            if self.groups.turns.shared:
                batch.waiting.append((number, chunk))
            else:
                self._judge(batch, step, number, chunk)
            if not any(batch.job.unfinished for batch in self.growing.values()):
                self._idle_since = time.perf_counter()
        if self.staleness:
            self._deal()

    def _judge(self, batch: _Growing, step: int, number: int, chunk: Chunk) -> None:
        """Give chunk `number` to the reference and to every signal."""
        reference = self.groups.reference_logprobs(step, number, chunk.experience)
        scores = {
            name: of_step(round_robin(group.handles, number), "score", step).remote(chunk.experience)
            for name, group in self.groups.signals.items()
        }
        batch.judged.append(_Judged(chunk, reference, scores))

    def _clock_idleness(self) -> None:
        if self._idle_since is not None:
            now = time.perf_counter()
            self.waited["rollout_waited_s"] += now - self._idle_since
            self._idle_since = now
