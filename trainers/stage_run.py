"""What the runner of a stage is given."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from actors.startup import Beginning
from castor.config.data import DataSource
from castor.data.rows.mixture import Mixture, mix
from castor.data.rows.schemas import PreferenceRow, QARow
from castor.data.rows.store import RowStore
from castor.data.sources.report import RowReport
from castor.evaluation.summary import RowCounts
from castor.io.errors import CastorError
from castor.io.files import read_json, write_json
from castor.io.terminal import Terminal
from castor.model_reference import ModelReference
from castor.run.claim import Claim
from castor.run.files import StageFiles

if TYPE_CHECKING:
    from actors.handover import Handover
    from castor.run.bundles import Bundle
    from castor.run.profile import Profile
    from castor.run.stages.stage import Stage
    from castor.run.trackers.trackers import Trackers

Row = TypeVar("Row")
StoredRow = TypeVar("StoredRow", QARow, PreferenceRow)
Loader = Callable[[DataSource, RowReport], list[Row]]
Stream = Callable[[DataSource, RowReport], Iterator[Row]]


@dataclass(frozen=True)
class RowReader:
    """Reads the rows of one stage: bad ones are dropped, listed beside the stage and told of; sources are mixed."""

    stage: str
    files: StageFiles
    resolve: Callable[[DataSource], DataSource]  # to a file, where a source is a stage of this run
    seed: int  # of the run: of what a mixture leaves out
    terminal: Terminal
    taken: list[tuple[DataSource, int]] = field(default_factory=list)  # every source so far, and how many of its rows
    counts: Counter[str] = field(default_factory=lambda: Counter(read=0, dropped=0, set_aside=0, too_long=0))

    def load(self, sources: Sequence[DataSource], load: Loader[Row]) -> list[Row]:
        """Good rows of all sources, mixed. Raises CastorError when none is left."""
        parts = [load(self.resolve(source), report) for source, report in self._reported(sources)]
        return list(self._mixed(sources, parts))

    @contextmanager
    def store(
        self, sources: Sequence[DataSource], kind: type[StoredRow], stream: Stream[StoredRow], use: str = ""
    ) -> Iterator[Mixture[StoredRow]]:
        """As `load`, but the rows pass through memory one at a time into files, one a source.

        What is yielded reads them from there, also in a process that sees the run folder. The files go with the end of
        the body; those of a process that was killed are replaced. `use` tells a second set of rows of the stage apart.
        """
        folder = self.files.stored_rows(use)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            parts = [
                RowStore.write(folder / f"{number}.arrow", kind, stream(self.resolve(source), report))
                for number, (source, report) in enumerate(self._reported(sources, use))
            ]
            yield self._mixed(sources, parts)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def count(self, **more: int) -> None:
        """Count rows that were read, dropped, set aside, or too long, and keep the counts for the summary."""
        self.counts.update(more)
        write_json(self.files.counts, dict(self.counts))

    def _reported(self, sources: Sequence[DataSource], use: str = "") -> Iterator[tuple[DataSource, RowReport]]:
        """Each source with the report to fill; what it says is written and told of before the next one begins."""
        for number, source in enumerate(sources):
            report = RowReport()
            yield source, report
            report.write(self.files.bad_rows(number, len(sources), use))
            self.count(read=report.total, dropped=len(report.dropped), set_aside=report.set_aside.total())
            if report.dropped or report.set_aside or report.repeated or report.notes:
                self.terminal.line(f"  [yellow]{source.source}[/]: {report.summary()}")

    def _mixed(self, sources: Sequence[DataSource], parts: Sequence[Sequence[Row]]) -> Mixture[Row]:
        rows = mix(sources, parts, self.seed)
        if not rows:
            raise CastorError(f"{self.stage}: no rows are left: see the counts above")
        self.taken.extend(zip(sources, map(len, rows.chosen), strict=True))
        return rows


def row_counts(files: StageFiles) -> RowCounts | None:
    """What became of the rows that a stage read; None where it has read none, or not said so."""
    if not files.counts.is_file():
        return None
    counts = read_json(files.counts)
    long = read_json(files.metrics).get("too_long", 0) if files.metrics.is_file() else 0  # of a supervised stage
    return RowCounts(**counts | {"too_long": counts["too_long"] + int(long)})


@dataclass(frozen=True)
class StageRun:
    """One run of one stage."""

    stage: Stage
    models: Mapping[str, ModelReference]  # what it reads, by the key of its section that names each
    files: StageFiles
    rows: RowReader
    seed: int
    template: str  # prompt format
    claim: Claim  # what decides the result, and whether it goes on from where it was cut short
    bundles: Sequence[Bundle]  # how its actors lie on GPUs
    terminal: Terminal
    tracker: Trackers
    beginning: Beginning = field(default_factory=Beginning)  # until its first token or step
    profile: Profile | None = None  # what is recorded of it
    handover: Handover | None = None  # from the stage before, and to the next one; None: it runs alone

    @property
    def name(self) -> str:
        """The stage's."""
        return self.stage.name

    @property
    def section(self) -> Any:
        """The stage's section, of the class that its runner knows."""
        return self.stage.section
