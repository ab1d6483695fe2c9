"""Making room in a run's folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from castor.config.rlhf import RLHF
from castor.io.checkpoint import find_leftovers, repair_folders
from castor.io.files import folder_size
from castor.run.checkpoints import Checkpoints
from castor.run.files import StageFiles
from castor.run.plan import Plan
from castor.run.records import Records
from castor.run.stages.stage import Stage


@dataclass(frozen=True)
class Superfluous:
    """A folder that nobody needs."""

    folder: Path
    reason: str
    size: int  # bytes


@dataclass(frozen=True)
class Pruned:
    """What was removed, and what came back in place: see `repair_folders`."""

    removed: Sequence[Superfluous]
    back: Sequence[Path]


def prune(plan: Plan, keep: int, dry_run: bool = False) -> Pruned:
    """Remove from a run what nobody needs: of a stage that is not finished all checkpoints but the newest `keep` and
    those that its config keeps, everything that a finished one trained with, and what killed processes left.

    Nobody else may be at work in the run. A dry run removes nothing. Raises CastorError where what tells of the
    checkpoints is damaged.
    """
    folder = plan.files.folder
    left = find_leftovers(folder)
    aside = [_measured(each, "left aside by a process that was killed") for each in left.rest]
    back = list(left.back) if dry_run else repair_folders(folder)
    found = [_measured(each, reason) for each, reason in _superfluous(plan, keep)]
    if dry_run:
        counted = {each.folder for each in found}
        aside = [each for each in aside if counted.isdisjoint(each.folder.parents)]
    else:
        for each in found:
            shutil.rmtree(each.folder)
    return Pruned([*aside, *found], back)


def _measured(folder: Path, reason: str) -> Superfluous:
    return Superfluous(folder, reason, folder_size(folder))


def _superfluous(plan: Plan, keep: int) -> list[tuple[Path, str]]:
    records, found = Records(plan.files), list[tuple[Path, str]]()
    for name, stage in plan.stages.items():
        files = plan.files.stage(name)
        found += [(folder, "rows of a process that was killed") for folder in files.all_stored_rows()]
        if records.of(name) is None:
            found += _older(stage, files, keep)
        elif files.training.folder.is_dir():
            found.append((files.training.folder, f"{name} is finished"))
    return found


def _older(stage: Stage, files: StageFiles, keep: int) -> Iterator[tuple[Path, str]]:
    checkpoints = Checkpoints(files.training)
    newest = checkpoints.newest()
    every = stage.section.checkpoint.keep_every if isinstance(stage.section, RLHF) else None
    for each in checkpoints.superfluous(keep, every):
        yield each.folder, "an older checkpoint"
    if newest is not None:
        whole = {each.folder for each in checkpoints.all()}
        for folder in files.training.checkpoints():
            if folder not in whole and folder < newest.folder:
                yield folder, "an older checkpoint that is not whole"
