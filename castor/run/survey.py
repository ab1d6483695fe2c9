"""What a run's folder holds: its stages, how far each of them has come, and its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from castor.config.load import load_config
from castor.io.checkpoint import MANIFEST
from castor.io.errors import CastorError
from castor.io.files import folder_size
from castor.run.checkpoints import Checkpoint, Checkpoints
from castor.run.files import RunFiles, StageFiles, located
from castor.run.plan import Plan, make_plan
from castor.run.records import Records, StageRecord
from castor.run.stages.stage import Stage


@dataclass(frozen=True)
class Stored:
    """A checkpoint on disk."""

    step: int
    folder: Path
    size: int  # bytes
    written: float  # seconds since the epoch


@dataclass(frozen=True)
class StageSurvey:
    """A stage, and what there is of it."""

    stage: Stage
    files: StageFiles
    record: StageRecord | None  # None: it is not finished
    checkpoints: Sequence[Stored]  # complete ones that it can go on from, the oldest first
    newest: int | None  # the step it goes on from
    kept: Sequence[Stored]  # complete ones that are kept for good

    @property
    def begun(self) -> bool:
        """Whether it was ever at work."""
        return self.record is not None or self.files.training.folder.is_dir() or self.files.folder.is_dir()


@dataclass(frozen=True)
class Survey:
    """A run."""

    files: RunFiles
    stages: Sequence[StageSurvey]  # in the order in which they run

    @property
    def finished(self) -> int:
        """Stages that are."""
        return sum(each.record is not None for each in self.stages)

    @property
    def at(self) -> StageSurvey | None:
        """The stage that the run is at: the first one that was begun, else the next; None: all are finished."""
        left = [each for each in self.stages if each.record is None]
        return next((each for each in left if each.begun), left[0] if left else None)

    @property
    def size(self) -> int:
        """Bytes of all checkpoints."""
        return sum(stored.size for each in self.stages for stored in (*each.checkpoints, *each.kept))

    @property
    def written(self) -> float:
        """When something was last written, in seconds since the epoch."""
        paths = [self.files.config, self.files.records, self.files.log]
        paths += [path for each in self.stages for path in (each.files.steps, each.files.training.newest)]
        return max((path.stat().st_mtime for path in paths if path.is_file()), default=0.0)


def runs_in(folder: Path) -> list[Path]:
    """The runs in a folder, which is found as a run_dir is, by their names.

    Raises CastorError where there is no such folder, and for one that is a run itself.
    """
    if RunFiles(folder).is_run:
        raise CastorError(
            f"{folder} is a run itself: give the folder that it is in, or use `castor runs show {folder}`"
        )
    try:
        found = sorted(located(folder).iterdir())
    except OSError as error:
        raise CastorError(f"{folder} cannot be listed ({error.strerror}): give a folder that holds runs") from None
    return [folder / path.name for path in found if RunFiles(path).is_run]


def plan_of_run(run_dir: Path) -> Plan:
    """The plan of a run, wherever its folder lies, from the config in it.

    Raises CastorError where there is no run, or one that this Castor cannot read.
    """
    files = RunFiles(run_dir)
    if not files.folder.is_dir():
        raise CastorError(f"there is no run at {run_dir}: give the folder of a run, e.g. runs/demo")
    if not files.config.is_file():
        raise CastorError(f"{run_dir} is no run, it has no {files.config.name}: give the folder of a run")
    Records(files).check()
    return make_plan(load_config(files.config).model_copy(update={"run_dir": run_dir}))


def survey(plan: Plan) -> Survey:
    """What there is of a plan. Raises CastorError where what tells of it is damaged."""
    records = Records(plan.files)
    stages = [_survey(stage, plan.files.stage(name), records.of(name)) for name, stage in plan.stages.items()]
    return Survey(plan.files, stages)


def _survey(stage: Stage, files: StageFiles, record: StageRecord | None) -> StageSurvey:
    checkpoints = Checkpoints(files.training)
    newest = checkpoints.newest() if record is None else None
    kept = [Checkpoint.at(path) for path in files.kept_checkpoints()]
    return StageSurvey(
        stage, files, record, _stored(checkpoints.all()), None if newest is None else newest.step, _stored(kept)
    )


def _stored(checkpoints: Iterable[Checkpoint]) -> list[Stored]:
    stored = []
    for each in checkpoints:
        with suppress(FileNotFoundError):  # not written to the end, or removed by a castor that is at work
            written = (each.folder / MANIFEST).stat().st_mtime
            stored.append(Stored(each.step, each.folder, folder_size(each.folder), written))
    return stored
