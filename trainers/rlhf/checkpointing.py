"""The state of an RLHF run on its way to a checkpoint, and back."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from actors.checkpointed import Written
from actors.group import START_TIMEOUT_S, ActorGroup, get
from castor.io.checkpoint import FileMark, StagedFolder, mark_files, verify_folder
from castor.io.ending import Ended, asked_to_end
from castor.io.errors import CastorError
from castor.io.files import read_jsonl, write_json, write_jsonl
from castor.run.checkpoints import Checkpoint, Checkpoints
from castor.run.claim import accepted_keys
from castor.run.ledger import Entry, Terms
from trainers.rlhf.groups import Groups
from trainers.rlhf.producer import Producer
from trainers.rlhf.run_log import RunLog
from trainers.rlhf.turns import Phase
from trainers.stage_run import StageRun

RESCUE_TIMEOUT_S = 120.0  # for a group to copy its state when another one has failed


@dataclass(frozen=True)
class Left:
    """What an earlier process left of the same run."""

    checkpoint: Checkpoint
    record: Mapping[str, Any]  # `Checkpoint.write_record`
    steps: Sequence[dict[str, Any]]
    ledger: Sequence[Entry]

    @property
    def step(self) -> int:
        """The last one it has."""
        return self.checkpoint.step


def find_left(run: StageRun) -> Left | None:
    """The checkpoint that a run goes on from; None: it begins. The file of the multipliers is made to say the same.

    Raises CastorError when the checkpoint is damaged, of another run or of another version of Castor, and when it is
    of another recipe and that was not accepted.
    """
    files = run.files.training
    run.claim.make(files)
    run.files.multipliers.unlink(missing_ok=True)
    checkpoint = Checkpoints(files).newest()
    if checkpoint is None:
        return None
    earlier = ", ".join(str(step) for step in files.steps() if step < checkpoint.step)
    instead = (
        f"remove {checkpoint.folder} and {files.newest} to go on after step {earlier}" if earlier else "use --fresh"
    )
    verify_folder(checkpoint.folder, instead)
    record = checkpoint.read_record(run.name, accepted_keys(files))
    if record["multipliers"] is not None:
        write_json(run.files.multipliers, record["multipliers"])
    ledger = [Entry.from_json(values) for values in read_jsonl(checkpoint.ledger)]
    return Left(checkpoint, record, read_jsonl(checkpoint.steps), ledger)


@dataclass(frozen=True)
class DriverState:
    """What the driver and the multiplier owner hold after a step."""

    step: int
    prompts: Mapping[str, Any]  # `PromptStream.state_dict`
    multipliers: Any  # a ref to `MultiplierOwner.state`; None without an owner


@dataclass(frozen=True)
class _Writing:
    """A checkpoint whose groups have copied their state and write it."""

    state: DriverState
    staged: StagedFolder


class Checkpointing:
    """Makes the checkpoints of one run.

    Everybody who holds state copies it between two steps; it is written while the next ones are taken, and the
    checkpoint is put in place, whole, once the last writer is done. A disk that is full, or a folder that cannot be
    written, costs a checkpoint and not the run: the next step tries again, and nothing older is removed meanwhile.
    """

    def __init__(self, run: StageRun, groups: Groups, producer: Producer, log: RunLog, terms: Terms) -> None:
        """`terms` are those of the run's ledger."""
        self.run, self.config, self.groups, self.producer, self.log = run, groups.config, groups, producer, log
        self.checkpoints, self.terms = Checkpoints(run.files.training), terms
        self.saved = 0  # the step of the newest checkpoint; 0: there is none
        self.failed = False  # the last attempt
        self._state: DriverState | None = None  # after the last step
        self._writing: _Writing | None = None
        self._begun = time.monotonic()  # the last one that was not a failure

    def go_on_from(self, left: Left) -> None:
        """Bring everybody to the state of a checkpoint, and the engines to its weights.

        Raises CastorError when it is of another architecture, or of other prompts.
        """
        self.producer.prompts.load_state_dict(left.record["prompts"])
        self.producer.ledger = list(left.ledger)
        for phase, groups in self._holders():
            self.groups.turns.to(phase)
            read = [(each, each.call("read_state", left.checkpoint.holder(each.name), left.step)) for each in groups]
            for group, refs in read:
                get(refs, START_TIMEOUT_S, f"{group.name} (reading its state)")
        self.producer.publish(left.step)
        self.saved = left.step

    def after_update(self, step: int) -> None:
        """Every group has the state after `step`: begin a checkpoint, if one is due, and put in place the last one.

        Raises what stopped a writer, but for a full disk and a folder that cannot be written.
        """
        owner = self.groups.multipliers
        multipliers = None if owner is None else owner.state.remote()
        self._state = DriverState(step, self.producer.place(), multipliers)
        self._settle(wait=False)
        if self._writing is None and (self._due(step) or asked_to_end()):
            self._begin(self._state, self.config.learner.timeout_s)

    def end_if_asked(self, step: int) -> None:
        """Raise `Ended` after `step`, of which everything is logged, if the process was asked to end."""
        if not asked_to_end() or step == self.config.steps:
            return
        assert self._state is not None
        if self._writing is None or self._writing.state.step != step:
            if self.groups.turns.shared:
                return  # the GPUs are the engines' by now: a checkpoint is made in the next step
            self._settle(wait=True)
            self._begin(self._state, self.config.learner.timeout_s)
        self._settle(wait=True)
        raise Ended(self.resumes())

    @contextmanager
    def rescuing(self) -> Iterator[None]:
        """Around the steps: where one fails before it has changed anybody's state, that of the step before is kept.

        So it is with an error in a function of the user's, and with a scorer that cannot be reached.
        """
        try:
            yield
        except Exception as error:
            if not isinstance(error, Ended):
                self._rescue()
                self.run.terminal.line(f"[yellow]{self.resumes()}[/]")
            raise

    def resumes(self) -> str:
        """From where the same command goes on, as a sentence."""
        if not self.saved:
            return f"{self.run.name} has no checkpoint yet: the same command starts it over"
        return f"the same command goes on after step {self.saved} of {self.run.name}"

    def finish(self) -> None:
        """The run is done: keep the checkpoints that are kept for good beside the policy, and drop the others."""
        if self._writing is not None:
            self._settle(wait=True)
        self.run.files.checkpoints.mkdir(exist_ok=True)
        every = self.config.checkpoint.keep_every
        for checkpoint in self.checkpoints.all():
            if every is not None and checkpoint.step % every == 0:
                checkpoint.folder.rename(self.run.files.checkpoints / checkpoint.folder.name)

    def _due(self, step: int) -> bool:
        if step == self.config.steps:
            return False
        options = self.config.checkpoint
        late = options.every_minutes is not None and time.monotonic() - self._begun >= 60 * options.every_minutes
        return self.failed or late or (options.every_steps is not None and step % options.every_steps == 0)

    def _begin(self, state: DriverState, timeout_s: float) -> None:
        """Have everybody copy the state, and begin to write it. It is left out where somebody is at another step."""
        try:
            staged = self.checkpoints.stage(state.step)
        except CastorError as error:
            self._tell_of_failure(state.step, error)
            return
        whole = True
        for phase, groups in self._holders():
            self.groups.turns.to(phase)
            begun = [(each, each.call("begin_checkpoint", staged.aside / each.name, state.step)) for each in groups]
            for group, refs in begun:
                whole = all(get(refs, timeout_s, f"{group.name} (copying its state)")) and whole
        if whole:
            self._writing, self._begun = _Writing(state, staged), time.monotonic()
        else:
            staged.discard()

    def _settle(self, wait: bool) -> None:
        """Put in place what was begun, if all of it is written."""
        if self._writing is None:
            return
        state, staged = self._writing.state, self._writing.staged
        parts: dict[str, list[Written | None]] = {}
        try:
            for _, groups in self._holders():
                for group in groups:
                    refs = group.call("finish_checkpoint", wait)
                    parts[group.name] = get(refs, self.config.learner.timeout_s, f"{group.name} (writing its state)")
            marks = dict[str, FileMark]()
            for name, ranks in parts.items():
                for written in ranks:
                    if written is None:
                        return
                    marks |= {f"{name}/{path}": mark for path, mark in written.marks.items()}
            self._commit(state, staged, marks)
        except CastorError as error:
            self._tell_of_failure(state.step, error)
        else:
            self.saved, self.failed = state.step, False
        self._writing = None
        staged.discard()

    def _commit(self, state: DriverState, staged: StagedFolder, marks: Mapping[str, FileMark]) -> None:
        multipliers = state.multipliers
        if multipliers is not None:
            multipliers = get(multipliers, self.config.learner.timeout_s, "the multiplier owner")
        made = Checkpoint(staged.aside, state.step)
        made.write_record(
            stage=self.run.name,
            key=self.run.claim.inputs.key,
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            prompts=dict(state.prompts),
            multipliers=multipliers,
            terms=asdict(self.terms),
        )
        write_jsonl(made.steps, self.log.steps[: state.step])
        write_jsonl(made.ledger, [entry.to_json() for entry in self.producer.ledger[: state.step]])
        own = mark_files(staged.aside, [made.record, made.steps, made.ledger])
        options = self.config.checkpoint
        self.checkpoints.commit(staged, state.step, {**marks, **own}, keep=options.keep, every=options.keep_every)

    def _holders(self) -> list[tuple[Phase, list[ActorGroup]]]:
        return [("critics", list(self.groups.signals.values())), ("learner", [self.groups.learner])]

    def _rescue(self) -> None:
        """Keep the state after the last step whose numbers are logged, if every holder still has it."""
        try:
            if self._writing is not None:
                self._settle(wait=True)
            state = self._state
            if state is not None and state.step == len(self.log.steps) > self.saved:
                self._begin(state, RESCUE_TIMEOUT_S)
                self._settle(wait=True)
        except Exception:  # the error that is on its way is the one to be told of
            traceback.print_exc()

    def _tell_of_failure(self, step: int, error: CastorError) -> None:
        self.failed = True
        since = f"since step {self.saved}" if self.saved else "from its beginning"
        self.run.terminal.line(
            f"[yellow]the state after step {step} is not saved[/]: {error}\n"
            f"{self.run.name} goes on, unsaved {since}, and tries again with the next step"
        )
