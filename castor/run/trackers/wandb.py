"""Weights & Biases: where a run is tracked, and how nothing of it is lost."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from castor.config.wandb import WandB
from castor.io.errors import CastorError
from castor.io.files import make_folder, write_text
from castor.run.trackers.tracker import samples_of

Mode = Literal["online", "offline", "shared", "disabled"]
PROJECT = "castor"  # where neither the config nor the environment names one
_MODES: dict[str, Mode] = {  # wandb's own names, old ones included
    "online": "online", "offline": "offline", "disabled": "disabled", "shared": "shared", "run": "online",
    "dryrun": "offline",
}  # fmt: skip


class WandBTracker:
    """One run of W&B for a run folder, in the group of the folder's name; stages and RLHF runs are series of it.

    A run that goes on is tracked as the one that it was before. wandb keeps the newest figures in the memory of a
    process that dies with this one, so every figure is first appended to a journal in the folder. A finished session
    leaves none; what a session that was killed has left is logged again by the next one, equal figures at equal steps.
    """

    def __init__(self, config: WandB, folder: Path, name: str, settings: dict[str, Any]) -> None:
        self._config, self._folder, self._name, self._settings = config, folder, name, settings
        self._series: set[str] = set()
        self._run: Any = None

    def open(self) -> bool:
        """Begin the session; False: nothing is to be tracked. Raises CastorError as `tracking_mode`."""
        mode = tracking_mode(self._config)
        if mode == "disabled":
            return False
        import wandb

        make_folder(self._folder)
        if not self._identity.is_file():
            write_text(self._identity, secrets.token_hex(4))
        self._run = wandb.init(
            id=self._identity.read_text(),
            resume=None if mode == "offline" else "allow",  # what is offline is put together when it is synchronised
            project=self._config.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            entity=self._config.entity,
            group=os.environ.get("WANDB_RUN_GROUP") or self._name,
            name=self._name,
            dir=str(self._folder),
            mode=mode,
            config=self._settings,
            settings=wandb.Settings(silent=True, console="off"),
        )
        for entry in self._left():
            self._send(**entry)
        return True

    def log(self, series: str, step: int, metrics: dict[str, float]) -> None:
        """Log `metrics` of `series` at `step`: every series has its own step axis."""
        self._keep_and_send({"series": series, "step": step, "metrics": metrics})

    def samples(self, series: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log the first `samples` rows as a table of `series`; texts are cut. 0 keeps all texts here."""
        if table := samples_of(rows, self._config.samples):
            self._keep_and_send({"series": series, "table": {"columns": list(columns), "data": table}})

    def start_over(self) -> None:
        """Track what comes as another run of the group."""
        self._identity.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def finish(self) -> None:
        """Flush and close: from here on the journal is not needed."""
        self._run.finish()
        self._journal.unlink(missing_ok=True)

    @property
    def _identity(self) -> Path:
        return self._folder / "run_id"

    @property
    def _journal(self) -> Path:
        return self._folder / "unfinished.jsonl"

    def _left(self) -> Iterator[dict[str, Any]]:
        """What a session that was killed had logged; the last line may have been cut short."""
        lines = self._journal.read_text(encoding="utf-8").split("\n") if self._journal.is_file() else [""]
        write_text(self._journal, "".join(f"{line}\n" for line in lines[:-1]))
        yield from map(json.loads, lines[:-1])

    def _keep_and_send(self, entry: dict[str, Any]) -> None:
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(entry) + "\n")
        self._send(**entry)

    def _send(self, series: str, step: int = 0, metrics: Any = None, table: Any = None) -> None:
        import wandb

        if table is not None:
            self._run.log({f"{series}/samples": wandb.Table(**table)})
            return
        if series not in self._series:
            self._series.add(series)
            self._run.define_metric(f"{series}/step", hidden=True)
            self._run.define_metric(f"{series}/*", step_metric=f"{series}/step")
        self._run.log({f"{series}/{name}": value for name, value in metrics.items()} | {f"{series}/step": step})


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

    _require_core()
    mode = _MODES[named or wandb.setup().settings.mode]
    if mode in ("offline", "disabled") or wandb.api.api_key:
        return mode
    if named is None:
        return "offline"
    where = "WANDB_MODE" if config.mode == "auto" else "wandb.mode"
    raise CastorError(f"{where} is {named}, but no API key is configured: run `wandb login`, or set wandb.mode=offline")


def _require_core() -> None:
    """Without the program that comes with it, `wandb.setup` would wait for itself for ever."""
    from wandb.errors import WandbCoreNotAvailableError
    from wandb.util import get_core_path

    try:
        get_core_path()
    except WandbCoreNotAvailableError as error:
        raise CastorError(f"wandb cannot run here: {error} Install it again, or set wandb.mode=disabled") from error
