"""The checkpoints of a stage: which there are, which is the newest, and which may go."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castor.io.checkpoint import MANIFEST, FileMark, StagedFolder, remove_folder
from castor.io.errors import CastorError
from castor.io.files import read_json, write_json
from castor.run.files import TrainingFiles

RECORD, LEDGER = "checkpoint.json", "ledger.jsonl"
FORMAT = 2  # of a checkpoint; raised when this Castor cannot go on from what an earlier one left


@dataclass(frozen=True)
class Checkpoint:
    """A complete one: the state after `step`."""

    folder: Path
    step: int

    @classmethod
    def at(cls, folder: Path) -> Checkpoint:
        """That of a folder, whose name tells its step."""
        return cls(folder, int(folder.name.removeprefix("step-")))

    def holder(self, name: str) -> Path:
        """Where a group keeps its part."""
        return self.folder / name

    @property
    def record(self) -> Path:
        """Whose it is, and what is held by nobody else: see `write_record`."""
        return self.folder / RECORD

    @property
    def steps(self) -> Path:
        """The numbers of all steps up to this one."""
        return self.folder / "steps.jsonl"

    @property
    def ledger(self) -> Path:
        """What they were trained on: `castor.run.ledger`."""
        return self.folder / LEDGER

    @property
    def key(self) -> str | None:
        """The fingerprint of the inputs of the run it is of, as it says itself; None where it says nothing."""
        try:
            return str(read_json(self.record)["key"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_record(self, **values: Any) -> None:
        """Write the record of an RLHF run: stage, key, written (when), attempt, prompts, multipliers, terms."""
        write_json(self.record, {"format": FORMAT, "step": self.step, **values})

    def read_record(self, stage: str, keys: Set[str]) -> dict[str, Any]:
        """The record. Raises CastorError when it is of another format, stage or step, or of none of the keys."""
        record: dict[str, Any] = read_json(self.record)
        if record["format"] > FORMAT:
            raise CastorError(f"{self.folder} was written by a newer Castor: go on with that one, or use --fresh")
        if record["format"] < FORMAT:
            raise CastorError(f"{self.folder} was written by an older Castor: go on with that one, or use --fresh")
        if record["stage"] != stage or record["key"] not in keys or record["step"] != self.step:
            raise CastorError(
                f"{self.folder} is the checkpoint of step {record['step']} of {record['stage']} in another run: remove "
                "it, or put back what belongs there"
            )
        return record


class Checkpoints:
    """Those of one stage, in its folder. `newest.json` names the one that a run goes on from."""

    def __init__(self, files: TrainingFiles) -> None:
        self.files = files

    def all(self) -> list[Checkpoint]:
        """The complete ones, the oldest first."""
        found = [Checkpoint.at(path) for path in self.files.checkpoints()]
        return [each for each in found if (each.folder / MANIFEST).is_file()]

    def newest(self) -> Checkpoint | None:
        """The one to go on from; None when there is none.

        Raises CastorError when the one that was written last is gone.
        """
        step = self._named()  # before looking which there are: a checkpoint is named once it is in place
        found = self.all()
        if step is None:
            return found[-1] if found else None
        named = next((each for each in found if each.step == step), None)
        if named is None:
            others = ", ".join(str(each.step) for each in found)
            raise CastorError(
                f"{self.files.newest} names the checkpoint of step {step}, and {self.files.checkpoint(step)} is not "
                f"there: put it back, or remove {self.files.newest} to go on from "
                + (f"the newest of steps {others}" if found else "the beginning")
            )
        return named

    def stage(self, step: int) -> StagedFolder:
        """The place where the checkpoint of a step is made; `commit` is called with it.

        One of this step that is in place, and was never named, as its process was killed, goes first: the disk may
        have no room for both.
        """
        folder, named = self.files.checkpoint(step), self._named()
        if folder.is_dir() and named is not None and named < step:
            remove_folder(folder)
        return StagedFolder(folder)

    def commit(
        self,
        staged: StagedFolder,
        step: int,
        marks: Mapping[str, FileMark],
        *,
        keep: int,
        every: int | None,
        needed: Set[int] = frozenset(),
    ) -> Checkpoint:
        """Put a checkpoint in place, then let `newest.json` name it, then drop those that are not to be kept.

        Those of the steps `needed` are not dropped: somebody reads them. Raises CastorError when what lies there is not
        what was written, or when the disk is full.
        """
        staged.commit(marks)
        write_json(self.files.newest, {"step": step})
        self.prune(keep, every, needed)
        return Checkpoint(staged.folder, step)

    def superfluous(self, keep: int, every: int | None = None) -> list[Checkpoint]:
        """All but the newest `keep` and those of multiples of `every` steps. Raises as `newest`."""
        newest = self.newest()
        older = [each for each in self.all() if newest is not None and each.step <= newest.step]
        return [each for each in older[:-keep] if every is None or each.step % every]

    def prune(self, keep: int, every: int | None = None, needed: Set[int] = frozenset()) -> list[Checkpoint]:
        """Drop those that are superfluous, but for the steps `needed`; returns them."""
        dropped = [each for each in self.superfluous(keep, every) if each.step not in needed]
        for each in dropped:
            remove_folder(each.folder)
        return dropped

    def _named(self) -> int | None:
        try:
            return int(read_json(self.files.newest)["step"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise CastorError(
                f"{self.files.newest} is damaged: remove it to go on from the newest checkpoint"
            ) from None
