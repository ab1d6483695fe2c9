"""An RLHF run on simulated actors: the order of `trainers.rlhf.loop` and its producer, with seconds for work."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from castor.dry_run.placement import PlacedActors
from castor.planner.cast import Cast
from castor.planner.costs import Tokens
from castor.planner.lengths import Lengths
from castor.planner.simulation import Actor, Call, Simulation
from castor.planner.work import Work

Waits = Generator[Sequence[Call], None, None]
SWITCH = "switching"


@dataclass
class StepTimes:
    """One step: seconds in which the driver waited for each part, and in which each group worked in that part."""

    waited: dict[str, float] = field(default_factory=dict)  # by part
    worked: dict[str, dict[str, float]] = field(default_factory=dict)  # by part, by group: mean over its actors
    response_tokens: int = 0

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(self.waited.values())


@dataclass
class _Batch:
    tokens: Tokens
    chunks: list[Call] = field(default_factory=list)
    arrived: int = 0  # chunks
    waiting: list[tuple[int, Tokens]] = field(default_factory=list)  # chunks that are judged later
    judged: list[Call] = field(default_factory=list)


class Rehearsal:
    """Simulates a run of some steps; `times` has those that are done."""

    def __init__(
        self, work: Work, cast: Cast, placed: Mapping[str, PlacedActors], lengths: Lengths, prompt: float, seed: int = 0
    ) -> None:
        """`placed`: the actors of the stage by name; `prompt`: tokens of a prompt, in the mean."""
        self.work, self.run, self.cast, self.placed = work, work.run, cast, placed
        self.lengths, self.prompt, self.seed = lengths, prompt, seed
        self.simulation = Simulation()
        self.times: list[StepTimes] = []
        self._version, self._next, self._batches = 0, 1, dict[int, _Batch]()
        self._phase, self._marked = "rollout", (0.0, self._busy())
        self._decoder, self._shared = work.decoder(prompt + lengths.mean), work.run.colocate
        continues = self.run.rollout.on_new_weights == "continue"
        # where responses go on on new weights, an engine stops for them: they are taken beside the calls that sample
        self._takers = [
            Actor("rollout", each.machines, each.demand, True) if continues else each for each in cast["rollout"]
        ]
        self._continues = continues

    def go(self, steps: int) -> None:
        """Simulate so many steps."""
        self.simulation.run(self._drive(steps))

    def _drive(self, steps: int) -> Waits:
        for step in range(1, steps + 1):
            self.times.append(StepTimes())
            self._deal()
            batch = self._batches[step]
            yield batch.chunks
            self._mark("rollout")
            yield from self._turn("judging")
            for number, tokens in batch.waiting:
                self._judge(batch, number, tokens)
            yield from self._learn(batch)
            yield from self._publish(step)
            self._mark("weights")
            self.times[-1].response_tokens = round(batch.tokens.responses)
            del self._batches[step]

    def _learn(self, batch: _Batch) -> Waits:
        call, work, cast = self.simulation.call, self.work, self.cast
        groups = {name: cast[f"signal-{name}"] for name in self.run.signals}
        judged = list(batch.judged)
        if self._shared:
            yield judged
            self._mark("judging")
            yield from self._turn("critics")
        valued = [call("values", group, work.values(name, batch.tokens), judged) for name, group in groups.items()]
        fitted = [call("critics", group, work.fitting(name, batch.tokens), valued) for name, group in groups.items()]
        if self._shared:
            yield valued
            self._mark("values")
            yield fitted
            self._mark("critics")
            yield from self._turn("learner")
        learned = call("learner", cast["learner"], work.learning(batch.tokens), [*valued, *judged])
        for part, waited in (("judging", judged), ("values", valued), ("learner", [learned]), ("critics", fitted)):
            yield waited
            self._mark(part)

    def _deal(self) -> None:
        """Deal the steps that the engines' version is recent enough for."""
        while self._next <= self._version + 1 + self.run.rollout.max_staleness:
            self._sample(self._next)
            self._next += 1

    def _sample(self, step: int) -> None:
        samples = self.run.samples_per_prompt
        count = self.run.prompts_per_step * samples
        drawn = self.lengths.draw(count, np.random.default_rng([self.seed, step]))
        responses = float(drawn.sum())
        total = count * self.prompt + responses
        batch = self._batches[step] = _Batch(Tokens(total, responses, total / count, samples))
        workers, size = self.cast["rollout"], self.run.rollout.chunk_size
        shares = np.array_split(np.arange(count), len(workers))
        for place, worker in enumerate(workers):
            mine = [int(length) for length in drawn[shares[place]]]
            ends, before = self._decoder.finished(self.prompt, mine), 0.0
            for start in range(0, len(ends), size):
                chunk = ends[start : start + size]
                sampled = float(sum(mine[index] for _, index in chunk))
                prompts = {int(shares[place][index]) // samples for _, index in chunk}
                tokens = Tokens(
                    sampled + len(chunk) * self.prompt, sampled, batch.tokens.context, len(chunk) / len(prompts)
                )
                seconds, before = chunk[-1][0] - before, chunk[-1][0]
                overhead = self.work.costs.device.call_s if start == 0 else 0.0
                batch.chunks.append(
                    self.simulation.call("rollout", [worker], seconds + overhead, then=self._arrival(batch, tokens))
                )

    def _arrival(self, batch: _Batch, tokens: Tokens) -> Callable[[], None]:
        def then() -> None:
            number, batch.arrived = batch.arrived, batch.arrived + 1
            if self._shared:
                batch.waiting.append((number, tokens))
            else:
                self._judge(batch, number, tokens)

        return then

    def _judge(self, batch: _Batch, number: int, tokens: Tokens) -> None:
        """Give chunk `number` to one rank of the reference and of every signal."""
        call, work, cast = self.simulation.call, self.work, self.cast
        group = cast["reference"] if "reference" in cast else cast["learner"]
        together = "reference" not in cast and self.run.learner.engine.zero_stage == 3
        batch.judged.append(call("reference", group if together else _turn_of(group, number), work.reference(tokens)))
        for name in self.run.signals:
            asked = _turn_of(cast[f"signal-{name}"], number)
            batch.judged.append(call("judging", asked, work.judging(name, tokens)))

    def _publish(self, step: int) -> Waits:
        call, work = self.simulation.call, self.work
        if self.run.transfer != "host":
            yield [call("weights", [*self.cast["learner"], *self._takers], work.publishing())]
            self._version = step
            return
        yield [call("weights", self.cast["learner"], work.publishing())]
        self._mark("weights")
        yield from self._turn("rollout")
        seconds, proof = work.loading(), self._proof(step)
        if self._continues:  # the key-value cache of what is under way is computed again
            seconds += self._decoder.prefill(self._decoder.slots * (self.prompt + self.lengths.mean / 2))
        loads = [call("weights", [taker], seconds, then=proof) for taker in self._takers]
        if not self._continues:
            self._version = step  # what is dealt from now on is sampled with it
        if not self.run.rollout.max_staleness:
            yield loads
            self._version = step

    def _proof(self, version: int) -> Callable[[], None]:
        """What happens when an engine has proven a version: where they are overtaken by it, it counts from the last."""
        missing = [None] * len(self._takers)

        def then() -> None:
            missing.pop()
            if self._continues and not missing:
                self._version = max(self._version, version)
                self._deal()

        return then

    def _turn(self, phase: str) -> Waits:
        """Give the GPUs to another phase, where they are shared: what leaves first, then what comes."""
        if not self._shared:
            return
        for leaving in (True, False):
            holders = self._holders(self._phase if leaving else phase)
            calls = [
                self.simulation.call(SWITCH, self.cast[name], self.work.moving(self.placed[name], held))
                for name, held in holders
            ]
            yield calls
        self._mark(SWITCH)
        self._phase = phase

    def _holders(self, phase: str) -> list[tuple[str, str]]:
        """The groups that work in a phase of turns, each with what it then holds. Engines drop what they hold."""
        signals = [f"signal-{name}" for name in self.run.signals]
        if phase == "rollout":
            return [("rollout", "rollout")] if self.run.policy.lora is not None else []
        if phase == "judging":
            whole = [("reference", "judging")] if "reference" in self.cast else [("learner", "learner")]
            return whole + [(name, "judging") for name in signals if "judging" in self.placed[name].phases]
        if phase == "critics":
            return [(name, "critics") for name in signals if "critics" in self.placed[name].phases]
        return [("learner", "learner")]

    def _mark(self, part: str) -> None:
        """What has passed since the last mark was waiting for `part`."""
        before, busy = self._marked
        now, times = self.simulation.now, self.times[-1]
        times.waited[part] = times.waited.get(part, 0.0) + now - before
        worked = times.worked.setdefault(part, {})
        after = self._busy()
        for group, seconds in after.items():
            worked[group] = worked.get(group, 0.0) + seconds - busy[group]
        self._marked = now, after

    def _busy(self) -> dict[str, float]:
        """Seconds in which each group has worked so far, in the mean over its actors."""
        now = self.simulation.now
        return {name: sum(each.busy(now) for each in group) / len(group) for name, group in self.cast.groups.items()}


def _turn_of(group: Sequence[Actor], number: int) -> list[Actor]:
    """The actor that works on chunk `number`: they take turns."""
    return [group[number % len(group)]]
