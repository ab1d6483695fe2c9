"""The steps of a run through the deaths of its groups, and through gradients that are not finite."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from actors.group import ActorFailure, Stalled
from actors.suspects import DeadlyPrompt
from castor.io.ending import Ended, asked_to_end
from castor.io.errors import CastorError, Unreachable
from trainers.rlhf.checkpointing import Checkpointing
from trainers.rlhf.loop import StepResult, train
from trainers.rlhf.run_state import RunState, find_left
from trainers.stage_run import StageRun

log = logging.getLogger(__name__)
FIRST_PAUSE_S = 10.0


class NotFinite(CastorError):
    """Too many steps in a row had a gradient that was not finite."""


class Grown(Exception):
    """Ranks that were missing can be had again, and a checkpoint has just been made."""


@dataclass
class Restarts:
    """The restarts that a run has taken, `allowed` of them and those for the loss of a node, as nodes come and go.

    Such a loss counts, too, where the run has come no further since the last one: what it does there may end the node.
    """

    allowed: int
    taken: int = 0
    _excused: int = 0
    _furthest: int = -1  # steps at the last excused one

    def take(self, steps: int, node_lost: bool) -> bool:
        """Take one after so many steps of the run; False when none is left."""
        if node_lost and steps > self._furthest:
            self._excused += 1
            self._furthest = steps
        elif self.taken - self._excused >= self.allowed:
            return False
        self.taken += 1
        return True


class Recovery:
    """Carries a run on where it can be carried on.

    A group that loses an actor is started anew, alone. If it held no state, the step is taken again; if it did,
    everybody goes back to the newest checkpoint, and the steps since then are taken again, with the same prompts and
    seeds; where a node is gone, with fewer ranks, until it is back. Rollout workers are replaced by their pool, and the
    multiplier owner by Ray. A prompt that kills the engines that sample it is set aside, for good. While a remote
    scorer cannot be reached, the run pauses. After max_skipped steps in a row with a gradient that was not finite,
    everybody goes back, too, and on with other samples and mini-batches.
    """

    def __init__(self, run: StageRun, state: RunState, checkpointing: Checkpointing) -> None:
        self.run, self.state, self.config, self.checkpointing = run, state, state.config, checkpointing
        self.restarts = Restarts(self.config.max_restarts)
        self._skipped = 0  # steps in a row
        self._paused = 0.0  # seconds since the last step
        self._saved = checkpointing.saved
        self._attempt = state.producer.attempt
        self._to_start = dict[str, None]()  # groups, those first that were lost first; until everybody is brought back

    def carry_out(self, finish: Callable[[], None]) -> None:
        """All steps from where the state is to the last, and what is to be done with the groups then.

        Raises ActorFailure or NotFinite when the run had to be carried on once too often, and whatever else stops a
        step, once the state before it is kept.
        """
        state, bring_back = self.state, False
        while True:
            try:
                if bring_back:
                    self._bring_back()
                    bring_back = False
                train(self.config, state.groups, state.producer, self._after, self.checkpointing.after_update)
                finish()
                return
            except Ended:
                raise
            except Exception as error:  # also one that comes while everybody is brought back
                self._prepare(error)
                bring_back = True

    def _after(self, result: StepResult) -> None:
        aside = {"deadly_prompts": float(len(self.state.prompts.aside))}
        self._paused = 0.0
        self.state.log.add(result, self.state.groups.roster.metrics() | aside)
        self._skipped = self._skipped + 1 if _skipped_updates(result.metrics) else 0
        if self._skipped > self.config.learner.max_skipped:
            raise NotFinite(
                f"{self.run.name}: the gradients of {self._skipped} steps in a row were not finite: lower the learning "
                "rates or the clip ranges, or look at the scores of the last steps"
            )
        self.checkpointing.end_if_asked(result.step)
        if self.checkpointing.saved > self._saved:
            self._saved = self.checkpointing.saved
            if result.step < self.config.steps and self.state.groups.grown():
                raise Grown("ranks that were missing are back")

    def _prepare(self, error: Exception) -> None:
        """Find out what has to be started anew. Raises the error, or another, where the run cannot be carried on."""
        groups = self.state.groups
        if isinstance(error, Grown):
            self.run.terminal.line(f"{self.run.name}: {error}")
            self._to_start |= dict.fromkeys(groups.grown())
            return
        if isinstance(error, Unreachable) and self._paused < 60 * self.config.patience_minutes:
            self._pause(error)
            return
        if isinstance(error, DeadlyPrompt):
            allowed = self.config.rollout.max_deadly_prompts
            if len(self.state.prompts.aside) < allowed:
                self._set_aside(error)
                return
            error = CastorError(
                f"{error}. As many as rollout.max_deadly_prompts allows, {allowed}, are set aside already"
            )
        ended = groups.end_silent() if isinstance(error, Stalled) else []
        lost, node_lost = groups.lost()
        self._to_start |= dict.fromkeys(lost)
        names, not_finite = " and ".join(dict.fromkeys([*self._to_start, *ended])), isinstance(error, NotFinite)
        for_a_person = isinstance(error, CastorError) and not not_finite
        steps = len(self.state.log.steps)
        if for_a_person or not (names or not_finite) or not self.restarts.take(steps, node_lost):
            if not not_finite:
                self.checkpointing.rescue()
            if names and not for_a_person:
                raise ActorFailure(
                    f"{names} died, after {self.restarts.taken} restarts, as many as max_restarts allows"
                ) from error
            raise error
        self._skipped = 0
        what = str(error)
        if names:
            what = f"{names} {'was stuck: its stacks are in the log' if ended else 'lost an actor'}"
        else:
            self._attempt += 1
        log.warning("%s: %s: %s", self.run.name, what, error)
        self.run.terminal.line(f"[yellow]{what}[/] after step {steps}")

    def _pause(self, error: Unreachable) -> None:
        """Wait before the step is taken again, longer each time; the state before it is kept meanwhile."""
        seconds = min(max(FIRST_PAUSE_S, self._paused), 60 * self.config.patience_minutes - self._paused)
        log.warning("%s pauses for %.0f s: %s", self.run.name, seconds, error)
        self.run.terminal.line(f"[yellow]{self.run.name} pauses for {seconds:.0f} s[/]: {error}")
        self.checkpointing.rescue()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if asked_to_end():
                raise Ended(self.checkpointing.resumes())
            time.sleep(0.2)
        self._paused += seconds

    def _set_aside(self, error: DeadlyPrompt) -> None:
        """Go on without a prompt."""
        number = self.state.prompts.set_aside(error.prompt)
        log.warning("%s: prompt %d is set aside: %s", self.run.name, number, error)
        self.run.terminal.line(
            f"[yellow]prompt {number} is set aside[/]: {error.deaths} engines died of it "
            f"(see {self.run.files.deadly_prompts})"
        )

    def _bring_back(self) -> None:
        """Start anew what has to be, and bring everybody to the same state.

        Where that is the beginning of the run, all that is trained is started anew: a process that loads its model once
        more keeps the memory of the engine before, of which DeepSpeed gives nothing back.
        """
        state, names = self.state, list(self._to_start)
        last = self.checkpointing.last_whole(names) if self._attempt == state.producer.attempt else None
        if last is None or names:  # a group that is started anew knows nothing of what it was to write
            self.checkpointing.abandon()
        left = find_left(self.run) if last is None else None
        if last is None and left is None:
            names = list(dict.fromkeys([*names, *state.groups.trained]))
        state.groups.restart(names)
        if last is not None:
            state.go_on(last, state.log.steps[: last.step], state.producer.ledger[: last.step])
        elif left is not None:
            state.read(left, self._attempt)
        else:
            state.begin_again(self._attempt)
        self._to_start.clear()
        self.run.terminal.line(f"{self.run.name} goes on after step {len(state.log.steps)}")


def _skipped_updates(metrics: Mapping[str, float]) -> float:
    """Of the policy and of all critics."""
    return sum(value for name, value in metrics.items() if name.rpartition("/")[2].endswith("skipped_updates"))
