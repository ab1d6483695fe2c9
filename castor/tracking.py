"""Weights & Biases: online with an account, kept offline beside the run without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from castor.config.pipeline import WandB


class Tracker:
    """Logs scalars of one run. Every series has its own step axis, so stages do not have to share a step count."""

    def __init__(self, config: WandB, folder: Path, name: str, settings: dict[str, Any]) -> None:
        self.mode = config.mode
        self._run: Any = None
        if self.mode == "disabled":
            return
        import wandb

        if self.mode == "auto":
            self.mode = "online" if wandb.api.api_key else "offline"
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=name,
            dir=str(folder),
            mode=self.mode,
            config=settings,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, series: str, step: int, metrics: dict[str, float]) -> None:
        """Log `metrics` of `series` (a stage or RLHF run) at `step`."""
        if self._run is not None:
            self._run.log({f"{series}/{name}": value for name, value in metrics.items()} | {f"{series}/step": step})

    def declare(self, series: str) -> None:
        """Let the charts of `series` use its own steps."""
        if self._run is not None:
            self._run.define_metric(f"{series}/step", hidden=True)
            self._run.define_metric(f"{series}/*", step_metric=f"{series}/step")

    def finish(self) -> None:
        """Flush and close."""
        if self._run is not None:
            self._run.finish()
