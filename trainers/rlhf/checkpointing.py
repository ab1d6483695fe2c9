"""The state of an RLHF run on its way to a checkpoint."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from actors.group import ActorGroup, get
from castor.io.checkpoint import FileMark, StagedFolder, mark_files
from castor.io.ending import Ended, asked_to_end
from castor.io.errors import CastorError
from castor.io.files import refusals_named, write_jsonl
from castor.run.checkpoints import Checkpoint, Checkpoints
from castor.run.ledger import Entry, Terms
from castor.run.remote import Uploader
from trainers.rlhf.run_state import DriverState, RunState, remote_checkpoints
from trainers.stage_run import StageRun

log = logging.getLogger(__name__)
RESCUE_TIMEOUT_S = 120.0  # for a group to copy its state when another one has failed


@dataclass
class _Writing:
    """A checkpoint that the groups were told to make: each copies its state before its next call, and writes it."""

    state: DriverState
    staged: StagedFolder
    copies: Sequence[tuple[ActorGroup, list[Any]]]  # refs to whether each rank has made one
    timeout_s: float  # for the copies
    commit: Future[None] | None = None  # once all groups have written theirs


@dataclass(frozen=True)
class _Driver:
    """The driver's part of a checkpoint."""

    record: Mapping[str, Any]
    steps: Sequence[dict[str, Any]]
    ledger: Sequence[Entry]


class Checkpointing:
    """Makes the checkpoints of a run.

    Everybody who holds state copies it between two steps, on its own: an actor serves its calls in order, so nobody
    needs to wait for the copy of another. It is written while the next steps are taken, and the checkpoint is put in
    place, whole, once the last writer is done. A disk that is full, or a folder that cannot be written, costs a
    checkpoint and not the run: the next step tries again, and nothing older is removed meanwhile.
    """

    def __init__(self, run: StageRun, state: RunState, terms: Terms, saved: int) -> None:
        """`terms` are those of the run's ledger; `saved` is the step of the newest checkpoint, 0 if there is none."""
        self.run, self.state, self.config, self.turns = run, state, state.config, state.groups.turns
        self.checkpoints, self.terms, self.saved = Checkpoints(run.files.training), terms, saved
        self.failed = False  # the last attempt
        self._last = state.beginning  # after the last update
        self._writing: _Writing | None = None
        self._threads = ThreadPoolExecutor(1, "checkpoint")
        options, remote = self.config.checkpoint, remote_checkpoints(run)
        self.checkpoints.prune(options.keep, options.keep_every)  # of a process that was killed before it could
        self.uploader: Uploader | None = None
        if remote is not None:
            self.uploader = Uploader(remote, options.keep, options.keep_every, run.terminal.line)
        self._begun = time.monotonic()  # the last one that was not a failure

    def after_update(self, step: int) -> None:
        """Every group has the state after `step`: begin a checkpoint, if one is due, and put in place the last one.

        Raises what stopped a writer, but for a full disk and a folder that cannot be written.
        """
        self._last = self.state.capture(step)
        self._settle(wait=False)
        if self.uploader is not None:
            self.uploader.poll()
        if self._writing is None and (self._due(step) or asked_to_end()):
            self._begin(self._last, self.config.learner.timeout_s)

    def end_if_asked(self, step: int) -> None:
        """Raise `Ended` after `step`, of which everything is logged, if the process was asked to end."""
        if not asked_to_end() or step == self.config.steps:
            return
        if self._writing is None or self._writing.state.step != step:
            if self.turns.shared:
                return  # the GPUs are the engines' by now: a checkpoint is made in the next step
            self._settle(wait=True)
            self._begin(self._last, self.config.learner.timeout_s)
        self._settle(wait=True)
        self._wait_for_uploads()
        raise Ended(self.resumes())

    def last_whole(self, lost: Sequence[str]) -> DriverState | None:
        """The state after the last step that was logged, if everybody who holds a part of it still does.

        `lost` are groups that hold nothing any more.
        """
        names = {part.name: part for _, groups in self.state.holders() for part in groups}
        for name in lost:
            signal = name.removeprefix("signal-")
            if name in names and (name == "learner" or self.config.has_critic(signal)):
                return None
        step = len(self.state.log.steps)
        if self._last.step != step:
            return None
        alive = [group for name, group in names.items() if name not in lost]
        asked = [(group, group.call("at_step")) for group in alive]
        whole = all(at == step for group, refs in asked for at in get(refs, RESCUE_TIMEOUT_S, group.name))
        return self._last if whole else None

    def abandon(self) -> None:
        """Give up what is being written, unless all of it is: a group that took part has died."""
        if self._writing is not None and self._writing.commit is not None:
            self._settle(wait=True)
        if self._writing is not None:
            self._writing.staged.discard()
        self._writing = None

    def rescue(self) -> None:
        """A step has failed: keep the state after the one before, if every holder still has it.

        So it is after an error in a function of the user's, and after a scorer that cannot be reached.
        """
        try:
            self._settle(wait=True)
            if self._last.step == len(self.state.log.steps) > self.saved:
                self._begin(self._last, RESCUE_TIMEOUT_S)
                self._settle(wait=True)
            self._wait_for_uploads()
        except Exception:  # the error that is on its way is the one to be told of
            traceback.print_exc()
        self.run.terminal.line(f"[yellow]{self.resumes()}[/]")

    def resumes(self) -> str:
        """From where the same command goes on, as a sentence."""
        if not self.saved:
            return f"{self.run.name} has no checkpoint yet: the same command starts it over"
        return f"the same command goes on after step {self.saved} of {self.run.name}"

    def finish(self) -> None:
        """The run is done: keep the checkpoints that are kept for good beside the policy, and drop the others."""
        self._settle(wait=True)
        self._wait_for_uploads()
        every = self.config.checkpoint.keep_every
        for checkpoint in self.checkpoints.all():
            if every is not None and checkpoint.step % every == 0:
                self.run.files.checkpoints.mkdir(exist_ok=True)
                checkpoint.folder.rename(self.run.files.checkpoints / checkpoint.folder.name)

    def _wait_for_uploads(self) -> None:
        if self.uploader is not None:
            self.uploader.poll(self.config.learner.timeout_s)

    def _due(self, step: int) -> bool:
        if step == self.config.steps:
            return False
        options = self.config.checkpoint
        late = options.every_minutes is not None and time.monotonic() - self._begun >= 60 * options.every_minutes
        return self.failed or late or (options.every_steps is not None and step % options.every_steps == 0)

    def _begin(self, state: DriverState, timeout_s: float) -> None:
        """Tell everybody to copy the state, and to write it. Nobody is waited for."""
        try:
            staged = self.checkpoints.stage(state.step)
        except CastorError as error:
            self._tell_of_failure(state.step, error)
            return
        copies: list[tuple[ActorGroup, list[Any]]] = []
        for phase, groups in self.state.holders():
            self.turns.to(phase)  # actors serve their calls in order: nobody leaves a GPU before the copy is made
            copies += [(each, each.call("begin_checkpoint", staged.aside / each.name, state.step)) for each in groups]
        self._writing, self._begun = _Writing(state, staged, copies, timeout_s), time.monotonic()

    def _settle(self, wait: bool) -> None:
        """Put in place what was begun, if all of it is written; that is done beside the steps, too.

        It is given up where somebody was at another step.
        """
        writing = self._writing
        if writing is None:
            return
        try:
            if writing.commit is None:
                if not self._copied(writing):
                    return
                marks = self._written(wait)
                if marks is None:
                    return
                writing.commit = self._threads.submit(self._commit, writing, self._of_the_driver(writing.state), marks)
            if not (wait or writing.commit.done()):
                return
            writing.commit.result(self.config.learner.timeout_s)
        except CastorError as error:
            self._tell_of_failure(writing.state.step, error)
        else:
            self.saved = writing.state.step
            if self.failed:
                self.run.terminal.line(f"{self.run.name} is saved again, after step {self.saved}")
            self.failed = False
            if self.uploader is not None:
                self.uploader.offer(Checkpoint(writing.staged.folder, self.saved))
        self._writing = None
        writing.staged.discard()

    def _copied(self, writing: _Writing) -> bool:
        """Whether everybody has a copy: all were told before what they have answered since. Without, it is given up."""
        whole = False
        try:
            copied = [get(refs, writing.timeout_s, f"{group.name} (copying)") for group, refs in writing.copies]
            whole = all(all(ranks) for ranks in copied)
        finally:
            if not whole:
                self.abandon()
        return whole

    def _written(self, wait: bool) -> dict[str, FileMark] | None:
        """What all ranks of all groups have written; None while one still writes, unless that is to be waited for."""
        marks = dict[str, FileMark]()
        groups = [group for _, groups in self.state.holders() for group in groups]
        asked = [(group, group.call("finish_checkpoint", wait)) for group in groups]
        for group, refs in asked:
            ranks = get(refs, self.config.learner.timeout_s, f"{group.name} (writing its state)")
            for written in ranks:
                if written is None:
                    return None
                marks |= {f"{group.name}/{path}": mark for path, mark in written.marks.items()}
        return marks

    def _of_the_driver(self, state: DriverState) -> _Driver:
        multipliers = state.multipliers
        if multipliers is not None:
            multipliers = get(multipliers, self.config.learner.timeout_s, "the multiplier owner")
        record = {
            "stage": self.run.name,
            "key": self.run.claim.inputs.key,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "attempt": state.attempt,
            "prompts": {**state.prompts, "aside": list(self.state.prompts.aside)},
            "multipliers": multipliers,
            "terms": asdict(self.terms),
        }
        return _Driver(record, self.state.log.steps[: state.step], self.state.producer.ledger[: state.step])

    def _commit(self, writing: _Writing, driver: _Driver, marks: Mapping[str, FileMark]) -> None:
        step, staged, options = writing.state.step, writing.staged, self.config.checkpoint
        made = Checkpoint(staged.aside, step)
        with refusals_named(staged.folder):
            made.write_record(**driver.record)
            write_jsonl(made.steps, driver.steps)
            write_jsonl(made.ledger, [entry.to_json() for entry in driver.ledger])
            own = mark_files(staged.aside, [made.record, made.steps, made.ledger])
            needed = frozenset[int]() if self.uploader is None else self.uploader.reading
            self.checkpoints.commit(
                staged, step, {**marks, **own}, keep=options.keep, every=options.keep_every, needed=needed
            )

    def _tell_of_failure(self, step: int, error: CastorError) -> None:
        log.warning("the state after step %d is not saved: %s", step, error)
        if not self.failed:
            since = f"since step {self.saved}" if self.saved else "from its beginning"
            self.run.terminal.line(
                f"[yellow]the state after step {step} is not saved[/]: {error}\n"
                f"{self.run.name} goes on, unsaved {since}, and tries again after every step"
            )
        self.failed = True
