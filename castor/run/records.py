"""Which stages of a run are finished, and with which inputs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from castor.io.errors import CastorError
from castor.io.files import read_json, write_json
from castor.run.files import RunFiles

FORMAT = 2  # of a run's folder; raised when this Castor cannot go on from what an earlier one left


@dataclass(frozen=True)
class StageRecord:
    """A finished stage: `key` fingerprints its recipe and all its inputs."""

    key: str
    seconds: float
    startup: dict[str, Any] = field(default_factory=dict)  # `actors.startup.Beginning.record`


class Records:
    """stages.json."""

    def __init__(self, files: RunFiles) -> None:
        self.files = files

    def check(self) -> None:
        """Raise CastorError for a run of a Castor whose files mean something else, and for a damaged one."""
        if self.files.records.is_file() and self._read().get("format") != FORMAT:
            raise CastorError(
                f"{self.files.folder} was made by another version of Castor, whose stages this one cannot read: give "
                "another run_dir, or start it over with `castor pipeline CONFIG --fresh`"
            )

    def of(self, stage: str) -> StageRecord | None:
        """Of the last time `stage` was finished; None when it never was."""
        return self._all().get(stage)

    def clear(self) -> None:
        """Forget everything: the run starts over."""
        self._write({})

    @contextmanager
    def recorded(self, stage: str, key: str) -> Iterator[dict[str, Any]]:
        """Time the body; record the stage as finished unless it raises, with what the body says of its start."""
        records = self._all()
        if records.pop(stage, None):
            self._write(records)
        start = time.monotonic()
        startup: dict[str, Any] = {}
        yield startup
        self._write(self._all() | {stage: StageRecord(key, time.monotonic() - start, startup)})

    def _all(self) -> dict[str, StageRecord]:
        if not self.files.records.is_file():
            return {}
        self.check()
        try:
            return {name: StageRecord(**record) for name, record in self._read()["stages"].items()}
        except (KeyError, TypeError, AttributeError):
            raise self._damaged() from None

    def _read(self) -> dict[str, Any]:
        try:
            values = read_json(self.files.records)
        except ValueError:
            raise self._damaged() from None
        if not isinstance(values, dict):
            raise self._damaged()
        return values

    def _damaged(self) -> CastorError:
        return CastorError(f"{self.files.records} is damaged: put it back, or remove it to run every stage again")

    def _write(self, records: dict[str, StageRecord]) -> None:
        stages = {name: asdict(record) for name, record in records.items()}
        write_json(self.files.records, {"format": FORMAT, "stages": stages})
