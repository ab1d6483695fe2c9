"""The steps of a run through the deaths of its groups, and through gradients that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from actors.group import ActorFailure, Stalled
from castor.io.ending import Ended
from castor.io.errors import CastorError
from trainers.rlhf.checkpointing import Checkpointing
from trainers.rlhf.loop import StepResult, train
from trainers.rlhf.run_state import RunState, find_left
from trainers.stage_run import StageRun

log = logging.getLogger(__name__)


class NotFinite(CastorError):
    """Too many steps in a row had a gradient that was not finite."""


class Grown(Exception):
    """Ranks that were missing can be had again, and a checkpoint has just been made."""


class Recovery:
    """Carries a run on where it can be carried on.

    A group that loses an actor is started anew, alone. If it held no state, the step is taken again; if it did,
    everybody goes back to the newest checkpoint, and the steps since then are taken again, with the same prompts and
    seeds; where a node is gone, with fewer ranks, until it is back. Rollout workers are replaced by their pool, and the
    multiplier owner by Ray. After max_skipped steps in a row with a gradient that was not finite, everybody goes back,
    too, and on with other samples and mini-batches.
    """

    def __init__(self, run: StageRun, state: RunState, checkpointing: Checkpointing) -> None:
        self.run, self.state, self.config, self.checkpointing = run, state, state.config, checkpointing
        self.restarts = 0  # at most max_restarts
        self._skipped = 0  # steps in a row
        self._saved = checkpointing.saved

    def carry_out(self) -> None:
        """All steps from where the state is to the last.

        Raises ActorFailure or NotFinite when the run had to be carried on once too often, and whatever else stops a
        step, once the state before it is kept.
        """
        while True:
            try:
                train(self.config, self.state.groups, self.state.producer, self._after, self.checkpointing.after_update)
                return
            except Ended:
                raise
            except Exception as error:
                self._carry_on(error)

    def _after(self, result: StepResult) -> None:
        self.state.log.add(result)
        self._skipped = self._skipped + 1 if _skipped_updates(result.metrics) else 0
        if self._skipped > self.config.learner.max_skipped:
            raise NotFinite(
                f"{self.run.name}: the gradients of {self._skipped} steps in a row were not finite: lower the learning "
                "rates or the clip ranges, or look at the scores of the last steps"
            )
        self.checkpointing.end_if_asked(result.step)
        if self.checkpointing.saved > self._saved:
            self._saved = self.checkpointing.saved
            if self.state.groups.grown():
                raise Grown("ranks that were missing are back")

    def _carry_on(self, error: Exception) -> None:
        """Bring everybody to the same state, or raise the error."""
        if isinstance(error, Grown):
            self.run.terminal.line(f"{self.run.name}: {error}")
            self._bring_back(self.state.groups.grown(), self.state.producer.attempt)
            return
        if isinstance(error, Stalled):
            self.state.groups.end_silent()
        lost = self.state.groups.lost()
        carried = bool(lost) or isinstance(error, NotFinite)
        if not carried or self.restarts == self.config.max_restarts:
            if not isinstance(error, NotFinite):
                self.checkpointing.rescue()
            if lost:
                raise ActorFailure(
                    f"{' and '.join(lost)} died, after {self.restarts} restarts, as many as max_restarts allows"
                ) from error
            raise error
        self.restarts += 1
        self._skipped = 0
        what = str(error)
        if lost:
            stuck = "was stuck: its stacks are in the log" if isinstance(error, Stalled) else "lost an actor"
            what = f"{' and '.join(lost)} {stuck}"
        log.warning("%s: %s: %s", self.run.name, what, error)
        self.run.terminal.line(f"[yellow]{what}[/] after step {len(self.state.log.steps)}")
        self._bring_back(lost, attempt=self.state.producer.attempt + (not lost))
        self.run.terminal.line(f"{self.run.name} goes on after step {len(self.state.log.steps)}")

    def _bring_back(self, lost: list[str], attempt: int) -> None:
        state, last = self.state, self.checkpointing.last_whole(lost) if lost else None
        if last is None:
            self.checkpointing.abandon()
        if lost:
            state.groups.restart(lost)
        if last is not None:
            state.go_on(last, state.log.steps[: last.step], state.producer.ledger[: last.step])
        elif (left := find_left(self.run)) is not None:
            state.read(left, attempt)
        else:
            state.begin_again(attempt)


def _skipped_updates(metrics: Mapping[str, float]) -> float:
    """Of the policy and of all critics."""
    return sum(value for name, value in metrics.items() if name.rpartition("/")[2].endswith("skipped_updates"))
