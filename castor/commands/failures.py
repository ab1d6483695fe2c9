"""How a command that logs to a file ends when it fails."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from castor.errors import CastorError

if TYPE_CHECKING:
    from castor.terminal import Terminal

EXIT_FAILURE = 1


class Interrupted(Exception):
    """An interrupt on its way out through typer, which would turn a KeyboardInterrupt into exit code 1."""


@contextmanager
def failures_told(terminal: Terminal, log: Path) -> Iterator[None]:
    """A failure that cannot be put right from its message: the traceback to the log, one sentence to the terminal."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
    except CastorError:
        raise
    except Exception as error:
        traceback.print_exc()  # stderr is the log here
        first = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        terminal.line(f"[red]castor failed[/]: {type(error).__name__}: {first}\nthe whole story is in {log}")
        raise typer.Exit(EXIT_FAILURE) from None
