"""How commands that look into runs tell of them: tables, sizes, times, and lines in which no name is markup."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def size_of(size: int) -> str:
    """Bytes, for a person."""
    from rich.filesize import decimal

    return decimal(size)


def time_of(seconds: float) -> str:
    """Seconds since the epoch, to the minute; 0: nothing."""
    return datetime.fromtimestamp(seconds).isoformat(" ", "minutes") if seconds else ""


def table_of(*columns: str) -> Table:
    """An empty table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        right = column in ("step", "seconds", "size", "checkpoints")
        table.add_column(column, justify="right" if right else "left", no_wrap="written" in column)
    return table


def add_row(table: Table, *cells: Any) -> None:
    """Add a row of plain text."""
    from rich.text import Text

    # Text, not str: names of folders may hold square brackets, which rich would take for markup.
    table.add_row(*(Text(str(cell), overflow="fold") for cell in cells))


def say(terminal: Any, line: str, mark: str = "") -> None:
    """Write a line of plain text after a mark in rich markup."""
    from rich.text import Text

    terminal.line(Text.from_markup(f"{mark}  ").append(line) if mark else Text(line))
