"""How far a supervised stage has come, and the folder it keeps that in until it is finished."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch.distributed as dist

from castor.config.supervised import Best
from castor.io.checkpoint import mark_files, remove_folder, repair_folders, verify_folder
from castor.io.errors import CastorError
from castor.io.files import read_json, write_json
from castor.run.checkpoints import Checkpoint, Checkpoints
from castor.run.files import TrainingFiles

STATE_FILE = "state.json"  # of a checkpoint


@dataclass
class StageState:
    """All a stage knows besides its engine's state. Data order and random numbers follow from seed and step."""

    step: int = 0
    loss_sum: float = 0.0  # over the steps since the newest validation that were not skipped
    loss_count: int = 0
    skipped: int = 0
    history: list[dict[str, float]] = field(default_factory=list)  # one entry a validation
    best_step: int = 0  # 0: none yet
    since_best: int = 0  # validations after the best one

    def note_loss(self, loss: float) -> None:
        """Of one update."""
        self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1

    def note_validation(self, metrics: dict[str, float], best: Best | None) -> bool:
        """Add validation metrics to the history; returns whether they are the best yet.

        Raises CastorError when `best` names no metric, or one that is not a finite number.
        """
        losses = {"training_loss": self.loss_sum / self.loss_count} if self.loss_count else {}
        self.loss_sum, self.loss_count = 0.0, 0
        self.history.append({"step": self.step, **metrics, **losses})
        if best is None:
            return False
        if best.metric not in metrics:
            raise CastorError(
                f"best.metric {best.metric!r} is not measured: choose one of {', '.join(sorted(metrics))}"
            )
        value, sign = metrics[best.metric], 1 if best.mode == "max" else -1
        if not math.isfinite(value):
            raise CastorError(f"best.metric {best.metric} is {value} at step {self.step}: it cannot be compared")
        improved = not self.best_step or sign * value > sign * self.entry(self.best_step)[best.metric]
        self.best_step, self.since_best = (self.step, 0) if improved else (self.best_step, self.since_best + 1)
        return improved

    def entry(self, step: int) -> dict[str, float]:
        """What was measured at `step`."""
        return next(entry for entry in self.history if entry["step"] == step)


def write_checkpoint(files: TrainingFiles, state: StageState, engine: Any, keep: int) -> None:
    """Save engine and state as the newest checkpoint; then drop all but `keep`, and best models no one needs.

    Collective. Each rank writes, and hashes, files of its own.
    """
    rank, checkpoints = dist.get_rank(), Checkpoints(files)
    staged = checkpoints.stage(state.step) if rank == 0 else None
    aside: list[Any] = [staged and staged.aside]
    dist.broadcast_object_list(aside, 0)
    written = engine.save(aside[0])
    if rank == 0:
        write_json(aside[0] / STATE_FILE, asdict(state))
        written.append(aside[0] / STATE_FILE)
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, mark_files(aside[0], written))
    if staged is not None:
        marks = {path: mark for share in shares for path, mark in share.items()}
        checkpoints.commit(staged, state.step, marks, keep=keep, every=None)
        for path in files.bests():
            if path != files.best(state.best_step):
                remove_folder(path)


def read_checkpoint(files: TrainingFiles, engine: Any, keep: int) -> StageState:
    """Load the newest checkpoint into the engine; a fresh state when there is none. Drops all but `keep`. Collective.

    Raises CastorError when the checkpoint is damaged.
    """
    checkpoints = Checkpoints(files)
    if dist.get_rank() == 0 and files.folder.is_dir():
        repair_folders(files.folder)  # after a group that died while it wrote one
    found: list[Checkpoint | None] = [checkpoints.newest() if dist.get_rank() == 0 else None]
    if found[0] is not None:
        verify_folder(found[0].folder, f"remove {found[0].folder} and {files.newest}, or use --fresh")
        checkpoints.prune(keep)
    dist.broadcast_object_list(found, 0)
    if found[0] is None:
        return StageState()
    engine.load(found[0].folder)
    return StageState(**read_json(found[0].folder / STATE_FILE))
