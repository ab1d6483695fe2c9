"""What a person sees: one progress bar per stage, one line per step. Everything else goes to the run's log."""

from __future__ import annotations

import io
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from castor.io.encoding import READABLE
from castor.io.files import make_folder, refusals_named
from castor.io.repeats import Collapsing

PACKAGES = ("castor", "engines", "actors", "trainers", "serve")
WIDE = 60  # columns of a terminal that shows more than the number and the time left


class Bar:
    """Progress of one stage: a bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, terminal: Terminal, name: str) -> None:
        self._terminal, self._name = terminal, name
        self._progress: Progress | None = None
        self._shown = 0.0
        if terminal.interactive:
            self._progress = Progress(
                *_columns(terminal.console),
                console=terminal.console,
                transient=True,
                expand=True,
                redirect_stdout=False,  # `captured` sends both to the log; what is printed must not come back here
                redirect_stderr=False,
            )
            self._task = self._progress.add_task(name, total=None, note="starting", rate="")
            self._progress.start()

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show `done` of `total`, and a short note."""
        if self._progress is not None:
            task = self._progress.tasks[0]
            speed = task.speed or 0.0
            rate = f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each" if speed else ""
            self._progress.update(self._task, completed=done, total=total, note=note, rate=rate)
        elif total and done / total >= self._shown + 0.25:
            self._shown = done / total
            self._terminal.line(f"  {self._name}: {done} of {total}  {note}")

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._progress is not None:
            self._progress.stop()


def _columns(console: Console) -> list[ProgressColumn]:
    wide, ascii_only = console.width >= WIDE, console.options.ascii_only
    # The note takes the room that the others leave. Without Unicode the ellipsis would be three characters wide.
    note = Column(ratio=1, no_wrap=True, overflow="crop" if ascii_only else "ellipsis")
    columns: list[ProgressColumn | None] = [
        SpinnerColumn("line" if ascii_only else "dots") if wide else None,
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=16) if wide else None,
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[rate]}") if wide else None,
        TimeElapsedColumn(table_column=Column(no_wrap=True)) if wide else None,
        TextColumn("eta"),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("[dim]{task.fields[note]}", table_column=note),
    ]
    return [column for column in columns if column is not None]


class Terminal:
    """The console that stays with the person while stdout and stderr of this process go to a log."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.interactive = self.console.is_terminal

    def line(self, text: RenderableType) -> None:
        """One line (or table)."""
        self.console.print(text)

    def tell_of_ending(self) -> None:
        """Say that the work ends when its state is kept. From a signal's handler, so past the console and its locks."""
        os.write(self.console.file.fileno(), b"\nending when the state is saved; once more to end without it\n")

    @contextmanager
    def bar(self, name: str) -> Iterator[Bar]:
        """The progress bar of a stage while the body runs."""
        bar = Bar(self, name)
        try:
            yield bar
        finally:
            bar.close()


@contextmanager
def captured(log: Path) -> Iterator[Terminal]:
    """Send this process's stdout and stderr, and so what Ray forwards from its workers, to the end of `log`, in UTF-8.

    Libraries print from Python, from C and from other processes, so the file descriptors themselves are redirected;
    the terminal yielded writes to the original stdout. The first line in the log is the time and the command; what our
    own packages log from INFO on has its time, too; what workers say again and again is counted (`castor.io.repeats`).

    Raises CastorError where `log` cannot be written.
    """
    make_folder(log.parent)
    with refusals_named(log):
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        started = f"{datetime.now().isoformat(' ', 'seconds')}  {shlex.join(sys.argv)}\n"
        os.write(sink, started.encode("utf-8", "backslashreplace"))
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    screen = os.fdopen(os.dup(saved[0]), "w", encoding=sys.stdout.encoding or "utf-8", errors=READABLE)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    encodings = [(stream.encoding, stream.errors) for stream in streams]
    for stream in streams:
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    outer = sys.stdout, sys.stderr
    collapsing = Collapsing(sys.stdout), Collapsing(sys.stderr)
    sys.stdout, sys.stderr = collapsing
    told = logging.StreamHandler(outer[1])
    told.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).addHandler(told)
    try:
        yield Terminal(Console(file=screen, highlight=False, soft_wrap=True))
    finally:
        for name in PACKAGES:
            logging.getLogger(name).removeHandler(told)
        for each in collapsing:
            each.finish()
        sys.stdout, sys.stderr = outer
        try:
            with refusals_named(log):
                sys.stdout.flush()
                sys.stderr.flush()
        finally:
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            screen.close()
            for descriptor in saved:
                os.close(descriptor)
            for stream, (encoding, errors) in zip(streams, encodings, strict=True):
                stream.reconfigure(encoding=encoding, errors=errors)
