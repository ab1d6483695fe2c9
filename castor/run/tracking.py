"""Weights & Biases: online with an account, kept offline beside the run without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from castor.config.wandb import WandB


class Tracker:
    """Logs scalars of one run, opened when its first series is declared.

    Every series has its own step axis, so stages do not have to share a step count.
    """

    def __init__(self, config: WandB, folder: Path, name: str, settings: dict[str, Any]) -> None:
        self._config, self._folder, self._name, self._settings = config, folder, name, settings
        self._run: Any = None

    def declare(self, series: str) -> None:
        """Let the charts of `series` use its own steps."""
        if self._run is None and self._config.mode != "disabled":
            self._run = self._open()
        if self._run is not None:
            self._run.define_metric(f"{series}/step", hidden=True)
            self._run.define_metric(f"{series}/*", step_metric=f"{series}/step")

    def log(self, series: str, step: int, metrics: dict[str, float]) -> None:
        """Log `metrics` of `series` (a stage or RLHF run) at `step`."""
        if self._run is not None:
            self._run.log({f"{series}/{name}": value for name, value in metrics.items()} | {f"{series}/step": step})

    def finish(self) -> None:
        """Flush and close."""
        if self._run is not None:
            self._run.finish()

    def _open(self) -> Any:
        import wandb

        mode = self._config.mode
        if mode == "auto":
            mode = "online" if wandb.api.api_key else "offline"
        self._folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            name=self._name,
            dir=str(self._folder),
            mode=mode,
            config=self._settings,
            settings=wandb.Settings(silent=True, console="off"),
        )
