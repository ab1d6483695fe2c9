"""The state of an RLHF run: who holds it, what an earlier process left of it, and how everybody is brought to it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.group import START_TIMEOUT_S, ActorGroup, get
from castor.data.tokens.prompt_stream import PromptStream
from castor.io.checkpoint import verify_folder
from castor.io.files import read_jsonl, write_jsonl
from castor.run.checkpoints import Checkpoint, Checkpoints
from castor.run.claim import accepted_keys
from castor.run.ledger import Entry
from castor.run.remote import RemoteCheckpoints
from trainers.rlhf.groups import Groups
from trainers.rlhf.producer import Producer
from trainers.rlhf.run_log import RunLog
from trainers.rlhf.turns import Phase
from trainers.stage_run import StageRun


@dataclass(frozen=True)
class Left:
    """A checkpoint, and what of it the driver needs."""

    checkpoint: Checkpoint
    record: Mapping[str, Any]  # `Checkpoint.write_record`
    steps: Sequence[dict[str, Any]]
    ledger: Sequence[Entry]

    @property
    def step(self) -> int:
        """The last one it has."""
        return self.checkpoint.step


def find_left(run: StageRun) -> Left | None:
    """The checkpoint that a run goes on from, or its copy where the run's folder has none; None: the run begins.

    Raises CastorError when the checkpoint is damaged, of another run or of another version of Castor.
    """
    files = run.files.training
    checkpoint = Checkpoints(files).newest()
    if checkpoint is None and not run.claim.fresh:
        checkpoint = _fetch(run)
    if checkpoint is None:
        return None
    earlier = ", ".join(str(step) for step in files.steps() if step < checkpoint.step)
    remove = f"remove {checkpoint.folder} and {files.newest} to go on after step {earlier}, or use --fresh"
    verify_folder(checkpoint.folder, remove if earlier else "use --fresh to start over")
    record = checkpoint.read_record(run.name, accepted_keys(files))
    ledger = [Entry.from_json(values) for values in read_jsonl(checkpoint.ledger)]
    return Left(checkpoint, record, read_jsonl(checkpoint.steps), ledger)


def remote_checkpoints(run: StageRun) -> RemoteCheckpoints | None:
    """Where the copies of a run's checkpoints are; None: it has none."""
    url, files = run.section.checkpoint.url, run.files.run
    if url is None or files is None:
        return None
    return RemoteCheckpoints(url, files.folder.name, run.name, files.config)


def _fetch(run: StageRun) -> Checkpoint | None:
    """The newest copy, among the run's checkpoints; None: there is none of these inputs."""
    remote, files = remote_checkpoints(run), run.files.training
    step = None if remote is None else remote.newest()
    if remote is None or step is None:
        return None
    checkpoint = remote.download(step, Checkpoints(files))
    if checkpoint.key in accepted_keys(files):
        run.terminal.line(f"{run.name}: the state after step {step} is back from {remote.url}")
        return checkpoint
    run.terminal.line(f"[yellow]{run.name} starts over[/]: what is at {remote.url} is of other inputs")
    shutil.rmtree(checkpoint.folder)
    files.newest.unlink()
    return None


@dataclass(frozen=True)
class DriverState:
    """What the driver and the multiplier owner hold after a step."""

    step: int
    attempt: int  # see `StepBatch`
    prompts: Mapping[str, Any]  # `PromptStream.state_dict`
    multipliers: Any  # a ref to `MultiplierOwner.state`; None without an owner


class RunState:
    """Everything that the steps of a run change.

    The groups of the learner and of the signals hold the models that are trained; the owner the multipliers and the KL
    coefficient; the driver the place in the prompts, the ledger and the log. Seeds and random numbers follow from the
    run's seed and the step, and what is being sampled is dealt again: neither is kept.
    """

    def __init__(self, groups: Groups, prompts: PromptStream, seed: int, log: RunLog) -> None:
        """All groups are as they were loaded."""
        self.groups, self.config, self.prompts, self.seed, self.log = groups, groups.config, prompts, seed, log
        self.producer = Producer(groups.config, groups, prompts, seed, 1)
        self.beginning = self.capture(0)

    def capture(self, step: int) -> DriverState:
        """What is held beside the groups; they have the state after `step`."""
        owner = self.groups.multipliers
        multipliers = None if owner is None else owner.state.remote()
        return DriverState(step, self.producer.attempt, self.producer.place(), multipliers)

    def holders(self) -> list[tuple[Phase, list[ActorGroup]]]:
        """The groups that hold state, with the phase in which it can be read and written."""
        return [("critics", list(self.groups.signals.values())), ("learner", [self.groups.learner])]

    def read(self, left: Left, attempt: int = 0) -> None:
        """Bring everybody to a checkpoint; `attempt` is at least the one from here on.

        Raises CastorError when it is of another architecture or other prompts.
        """
        for phase, groups in self.holders():
            self.groups.turns.to(phase)
            read = [(each, each.call("read_state", left.checkpoint.holder(each.name), left.step)) for each in groups]
            for group, refs in read:
                get(refs, START_TIMEOUT_S, f"{group.name} (reading its state)")
        record = left.record
        attempt = max(record["attempt"], attempt)
        state = DriverState(left.step, attempt, record["prompts"], record["multipliers"])
        self.go_on(state, left.steps, left.ledger)

    def begin_again(self, attempt: int = 0) -> None:
        """Bring everybody to where the run began. What is trained has just been started anew."""
        self.go_on(replace(self.beginning, attempt=attempt), [], [])

    def go_on(self, state: DriverState, steps: Sequence[dict[str, Any]], ledger: Sequence[Entry]) -> None:
        """Bring driver, owner and engines to the state that the groups hold; `steps` and `ledger` are those up to it.

        What is being sampled is dropped; what was set aside meanwhile stays so. Raises CastorError when the state is of
        other prompts.
        """
        self.prompts.load_state_dict(dict(state.prompts))
        self._list_deadly_prompts()
        if self.groups.multipliers is not None and state.multipliers is not None:  # else they are new, as of their file
            restoring = self.groups.multipliers.restore.remote(state.multipliers)
            get(restoring, START_TIMEOUT_S, "the multiplier owner")
        self.log.rewind(steps)
        self.groups.rollout.abandon()
        self.producer = Producer(
            self.config, self.groups, self.prompts, self.seed, state.step + 1, ledger, state.attempt
        )
        self.groups.turns.to("learner")
        self.producer.publish(state.step)

    def _list_deadly_prompts(self) -> None:
        path, aside = self.log.run.files.deadly_prompts, self.prompts.aside
        path.unlink(missing_ok=True)
        if aside:
            write_jsonl(path, ({"reason": "kills its engine", "prompt": each.text} for each in aside.values()))
