"""Weights & Biases: where a run is tracked, and its series of scalars."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from castor.config.wandb import WandB
from castor.io.errors import CastorError
from castor.io.files import make_folder, write_text

Mode = Literal["online", "offline", "shared", "disabled"]
PROJECT = "castor"  # where neither the config nor the environment names one
SHOWN_CHARACTERS = 500  # of a text in a table
_MODES: dict[str, Mode] = {  # wandb's own names, old ones included
    "online": "online", "offline": "offline", "disabled": "disabled", "shared": "shared", "run": "online",
    "dryrun": "offline",
}  # fmt: skip


class Tracker:
    """Logs scalars of one run, opened when its first series is declared.

    Every series has its own step axis, so stages do not have to share a step count. A run that goes on is tracked as
    the one that it was before.
    """

    def __init__(self, config: WandB, folder: Path, name: str, settings: dict[str, Any]) -> None:
        self._config, self._folder, self._name, self._settings = config, folder, name, settings
        self._run: Any = None

    def declare(self, series: str) -> None:
        """Let the charts of `series` use its own steps."""
        if self._run is None:
            self._run = self._open()
        if self._run is not None:
            self._run.define_metric(f"{series}/step", hidden=True)
            self._run.define_metric(f"{series}/*", step_metric=f"{series}/step")

    def log(self, series: str, step: int, metrics: dict[str, float]) -> None:
        """Log `metrics` of `series` (a stage or RLHF run) at `step`."""
        if self._run is not None:
            self._run.log({f"{series}/{name}": value for name, value in metrics.items()} | {f"{series}/step": step})

    def samples(self, series: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log the first `wandb.samples` rows as a table of `series`; texts are cut. 0 keeps all texts here."""
        if self._run is None or not self._config.samples or not rows:
            return
        import wandb

        cut = [[cell[:SHOWN_CHARACTERS] if isinstance(cell, str) else cell for cell in row] for row in rows]
        table = wandb.Table(columns=list(columns), data=cut[: self._config.samples])
        self._run.log({f"{series}/samples": table})

    def start_over(self) -> None:
        """Track what comes as another run. To be called before the first series is declared."""
        self._identity.unlink(missing_ok=True)

    @property
    def _identity(self) -> Path:
        return self._folder / "run_id"

    def finish(self) -> None:
        """Flush and close."""
        if self._run is not None:
            self._run.finish()

    def _open(self) -> Any:
        mode = tracking_mode(self._config)
        if mode == "disabled":
            return None
        import wandb

        make_folder(self._folder)
        if not self._identity.is_file():
            write_text(self._identity, secrets.token_hex(4))
        return wandb.init(
            id=self._identity.read_text(),
            resume=None if mode == "offline" else "allow",  # what is offline is put together when it is synchronised
            project=self._config.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            entity=self._config.entity,
            name=self._name,
            dir=str(self._folder),
            mode=mode,
            config=self._settings,
            settings=wandb.Settings(silent=True, console="off"),
        )


def tracking_mode(config: WandB) -> Mode:
    """How a run is tracked: as `wandb.mode` of the config says, or, where that is auto, as the environment does.

    The environment is WANDB_DISABLED, then WANDB_MODE, then wandb's own settings files, which `wandb offline` writes.
    Where none of them says anything, online with an API key and offline without one. Raises CastorError for a
    WANDB_MODE that wandb does not know, and for online without a key: wandb would ask for one, unseen, in the log.
    """
    environment = os.environ.get("WANDB_MODE") or None
    if config.mode == "auto" and os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    if config.mode != "disabled" and environment is not None and environment not in _MODES:
        raise CastorError(f"WANDB_MODE is {environment!r}: set it to one of {', '.join(_MODES)}")
    named = environment if config.mode == "auto" else config.mode
    if named is not None and _MODES[named] in ("offline", "disabled"):
        return _MODES[named]
    import wandb

    mode = _MODES[named or wandb.setup().settings.mode]
    if mode in ("offline", "disabled") or wandb.api.api_key:
        return mode
    if named is None:
        return "offline"
    where = "WANDB_MODE" if config.mode == "auto" else "wandb.mode"
    raise CastorError(f"{where} is {named}, but no API key is configured: run `wandb login`, or set wandb.mode=offline")
