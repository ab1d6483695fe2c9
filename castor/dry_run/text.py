"""Headings and tables of a dry run, as plain text."""

from collections.abc import Iterable
from io import StringIO
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

WIDTH = 110


def heading(title: str) -> str:
    """`title`, underlined."""
    return f"{title}\n{'=' * len(title)}\n"


def text(*parts: RenderableType) -> str:
    """`parts`, one below the other, in lines of up to `WIDTH` characters."""
    console = Console(width=WIDTH, file=StringIO(), highlight=False, markup=False, force_terminal=False)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().split("\n"))


def table_of(columns: Iterable[str], numbers: Iterable[str]) -> Table:
    """An empty table, those of its columns that are `numbers` to the right."""
    right = set(numbers)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for column in columns:
        justify: Literal["right", "left"] = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column in ("stage", "key", *right))
    return table
