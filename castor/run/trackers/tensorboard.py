"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from castor.config.trackers import TensorBoard
from castor.io.errors import CastorError
from castor.io.files import make_folder
from castor.run.trackers.tracker import samples_of


class TensorBoardTracker:
    """Event files, written out at every step: a kill loses nothing. A run that goes on adds another file.

    tensorboardX's own SummaryWriter writes in a thread, whose queue is lost with the process.
    """

    def __init__(self, config: TensorBoard, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._writer: Any = None

    def open(self) -> bool:
        """Raises CastorError where tensorboardX is not installed."""
        try:
            from tensorboardX.event_file_writer import EventsWriter
        except ImportError:
            raise CastorError(
                "the config has a tensorboard section, and tensorboardX is not installed: `pip install tensorboardX`, "
                "or remove the section"
            ) from None
        make_folder(self._folder)
        self._writer = EventsWriter(str(self._folder / "events"), f".{time.time_ns():x}")
        return True

    def log(self, series: str, step: int, metrics: dict[str, float]) -> None:
        """Scalars named SERIES/NAME."""
        from tensorboardX.summary import scalar

        for name, value in metrics.items():
            self._write(step, scalar(f"{series}/{name}", value))
        self._writer.flush()

    def samples(self, series: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Texts: a row of the table at each step."""
        from tensorboardX.summary import text

        for number, row in enumerate(samples_of(rows, self._config.samples)):
            cells = zip(columns, row, strict=True)
            self._write(
                number,
                text(f"{series}/samples", "\n\n".join(f"{column}:\n\n{_indented(cell)}" for column, cell in cells)),
            )
        self._writer.flush()

    def _write(self, step: int, summary: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def start_over(self) -> None:
        """Removes the event files of what was before."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()


def _indented(cell: Any) -> str:
    """As Markdown shows it letter by letter."""
    return "\n".join(f"    {line}" for line in str(cell).split("\n"))
