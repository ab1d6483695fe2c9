"""What every stage works with: the config, the run's folder, the terminal, the tracker."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from castor.config.data import DataSource
from castor.config.pipeline import Config
from castor.data.rows.mixture import Mixture, mix
from castor.data.rows.schemas import PreferenceRow, QARow
from castor.data.rows.store import RowStore
from castor.data.sources.report import RowReport
from castor.io.errors import CastorError
from castor.io.files import fingerprint
from castor.io.terminal import Terminal
from castor.run.folder import RunFolder
from castor.run.rounds import round_group
from castor.run.tracking import Tracker

Row = TypeVar("Row")
StoredRow = TypeVar("StoredRow", QARow, PreferenceRow)
Loader = Callable[[DataSource, RowReport, Path | None], list[Row]]
Stream = Callable[[DataSource, RowReport, Path | None], Iterator[Row]]


@dataclass(frozen=True)
class Context:
    """Passed to every stage."""

    config: Config
    folder: RunFolder
    terminal: Terminal
    tracker: Tracker
    join_cluster: Callable[[], None]  # connects to Ray, or starts it; a second call does nothing
    key: str = ""  # fingerprint of the stage that is running and of its inputs
    fresh: bool = False  # whether that stage starts over instead of going on from its checkpoint

    def seed(self, stage: str) -> int:
        """The seed of a stage: that of the config, but another one in every round after the first.

        A later round must not repeat the random choices of the first on other weights, and the unified models of a run
        in rounds, which judge the policies, must not be the very models that the last round was trained against.
        """
        group, in_group, _ = stage.partition("/")
        if not in_group or group == round_group(1):
            return self.config.seed
        return int(fingerprint([self.config.seed, group])[:7], 16)

    def load_rows(self, stage: str, sources: Sequence[DataSource], load: Loader[Row]) -> list[Row]:
        """Good rows of all sources, mixed. Dropped ones are listed in <stage>.bad_rows*.jsonl and told of."""
        parts = [load(source, report, self.folder.path) for source, report in self._reported(stage, sources)]
        return list(self._mixed(stage, sources, parts))

    @contextmanager
    def store_rows(
        self, stage: str, sources: Sequence[DataSource], kind: type[StoredRow], stream: Stream[StoredRow]
    ) -> Iterator[Mixture[StoredRow]]:
        """As `load_rows`, but the rows pass through memory one at a time into <stage>.rows/, one file a source.

        What is yielded reads them from there, also in a process that sees the run folder. The files go with the end of
        the body; those of a process that was killed are replaced.
        """
        folder = self.folder.path / f"{stage}.rows"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            parts = [
                RowStore.write(folder / f"{number}.arrow", kind, stream(source, report, self.folder.path))
                for number, (source, report) in enumerate(self._reported(stage, sources))
            ]
            yield self._mixed(stage, sources, parts)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _reported(self, stage: str, sources: Sequence[DataSource]) -> Iterator[tuple[DataSource, RowReport]]:
        """Each source with the report to fill; what it says is written and told of before the next one begins."""
        for number, source in enumerate(sources):
            report = RowReport()
            yield source, report
            report.write(self.folder.path / f"{stage}.bad_rows{_suffix(number, sources)}.jsonl")
            if report.dropped or report.set_aside or report.repeated or report.notes:
                self.terminal.line(f"  [yellow]{source.source}[/]: {report.summary()}")

    def _mixed(self, stage: str, sources: Sequence[DataSource], parts: Sequence[Sequence[Row]]) -> Mixture[Row]:
        rows = mix(sources, parts, self.config.seed)
        if not rows:
            raise CastorError(f"{stage}: no rows are left: see the counts above")
        return rows


def _suffix(number: int, sources: Sequence[DataSource]) -> str:
    return f".{number}" if len(sources) > 1 else ""
