"""The trackers that a config asks for, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from castor.run.files import RunFiles
from castor.run.trackers.tracker import Tracker

if TYPE_CHECKING:
    from castor.config.pipeline import Config


class Trackers:
    """Hands every figure to each tracker. They are opened when the first series is declared."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._asked, self._open = trackers, list[Tracker]()
        self._declared = False

    @classmethod
    def of(cls, config: Config, files: RunFiles) -> Trackers:
        """Those of a config, for the run in its folder."""
        from castor.run.trackers.mlflow import MLflowTracker
        from castor.run.trackers.tensorboard import TensorBoardTracker
        from castor.run.trackers.wandb import WandBTracker

        name, asked = files.folder.name, list[Tracker]()
        asked.append(WandBTracker(config.wandb, files.wandb, name, config.model_dump(mode="json")))
        if config.tensorboard is not None:
            asked.append(TensorBoardTracker(config.tensorboard, files.tensorboard))
        if config.mlflow is not None:
            asked.append(MLflowTracker(config.mlflow, files.mlflow, name))
        return cls(asked)

    def declare(self) -> None:
        """Something is about to be logged."""
        if not self._declared:
            self._declared = True
            for tracker in self._asked:
                if tracker.open():
                    self._open.append(tracker)

    def log(self, series: str, step: int, metrics: dict[str, float]) -> None:
        """Log `metrics` of `series` (a stage or RLHF run) at `step`."""
        for tracker in self._open:
            tracker.log(series, step, metrics)

    def samples(self, series: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log some of the rows as a table of `series`."""
        for tracker in self._open:
            tracker.samples(series, columns, rows)

    def start_over(self) -> None:
        """Track what comes as another run. To be called before the first series is declared."""
        for tracker in self._asked:
            tracker.start_over()

    def finish(self) -> None:
        """Flush and close."""
        for tracker in self._open:
            tracker.finish()
