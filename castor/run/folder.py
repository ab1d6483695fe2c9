"""A run's folder: where each stage keeps what it makes, and which stages are finished with which inputs."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from castor.config.pipeline import Config
from castor.io.checkpoint import verify_folder
from castor.io.errors import CastorError
from castor.io.files import make_folder, read_json, refusals_named, write_json

STAGE = "stage:"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The run folder for this process alone: two at work in it would remove each other's files.

    Raises CastorError while another process has it. The system lets go of it however this process ends.
    """
    make_folder(folder)
    with refusals_named(folder):
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CastorError(
                f"another castor (process {os.read(lock, 20).decode() or 'unknown'}) is at work in {folder}: "
                "wait for it, end it, or give another run_dir"
            ) from None
        with refusals_named(folder):
            os.ftruncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
        yield
    finally:
        os.close(lock)


@dataclass(frozen=True)
class StageRecord:
    """A finished stage: `key` fingerprints its config and all its inputs."""

    key: str
    seconds: float


class RunFolder:
    """Paths and records of one run."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = config.run_dir.absolute()  # an actor's working directory is not the driver's
        self.records_file = self.path / "stages.json"

    def model_path(self, reference: str) -> str:
        """Folder or hub id behind `stage:NAME`, or `reference` itself.

        Raises CastorError while the stage is missing.
        """
        if not reference.startswith(STAGE):
            local = Path(reference).expanduser()
            return str(local.absolute()) if local.is_dir() else reference
        name = reference.removeprefix(STAGE)
        folder = self._model_folder(name)
        if not (folder / "config.json").is_file():
            raise CastorError(f"{reference} has no model at {folder} yet: run `castor {self._command(name)}` first")
        return str(folder)

    def _model_folder(self, stage: str) -> Path:
        """A stage of a round, `round-k/NAME`, keeps what the stage NAME of a run without rounds does."""
        is_run = stage.rpartition("/")[2] in self.config.rlhf
        return self.path / stage / "policy" if is_run else self.path / stage

    def _command(self, name: str) -> str:
        config = self.config
        for command, names in (("rlhf", config.rlhf), ("moderation", config.moderation), ("dpo", config.dpo)):
            if name in names:
                return f"{command} CONFIG --run {name}"
        return f"{'pipeline' if name == 'model' or '/' in name else name} CONFIG"

    def verify(self, stage: str) -> None:
        """Raise CastorError when the model that a finished stage left is damaged or gone."""
        config = self.config
        models = ("model", "sft", "reward", "cost", *config.moderation, *config.dpo, *config.rlhf)
        if stage.rpartition("/")[2] in models:
            verify_folder(self._model_folder(stage))

    def record(self, stage: str) -> StageRecord | None:
        """Of the last time `stage` was finished; None when it never was."""
        record = self._records().get(stage)
        return StageRecord(**record) if record else None

    @contextmanager
    def recorded(self, stage: str, key: str) -> Iterator[None]:
        """Time the body; record the stage as finished unless it raises."""
        records = self._records()
        if records.pop(stage, None):
            write_json(self.records_file, records)
        start = time.monotonic()
        yield
        record = {"key": key, "seconds": time.monotonic() - start}
        write_json(self.records_file, self._records() | {stage: record})

    def _records(self) -> dict[str, dict]:
        return read_json(self.records_file) if self.records_file.is_file() else {}
