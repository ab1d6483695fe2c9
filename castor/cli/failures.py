"""How a command that logs to a file ends when it fails."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from castor.io.errors import CastorError

if TYPE_CHECKING:
    from castor.io.terminal import Terminal

EXIT_FAILURE = 1
_asked_to_end = threading.Event()


class Interrupted(Exception):
    """An interrupt on its way out through typer, which would turn a KeyboardInterrupt into exit code 1."""


def interrupt(signum: int, frame: Any) -> None:
    """Handler of the signals that end a command."""
    _asked_to_end.set()
    raise KeyboardInterrupt


@contextmanager
def failures_told(terminal: Terminal, log: Path) -> Iterator[None]:
    """A failure that cannot be put right from its message: the traceback to the log, one sentence to the terminal.

    What fails after an interrupt fails because of it: the actors got the signal too, and are missed in the clearing up.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
    except Exception as error:
        if isinstance(error, CastorError) and not _asked_to_end.is_set():
            raise
        traceback.print_exc()  # stderr is the log here
        if _asked_to_end.is_set():
            raise Interrupted from None
        first = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        terminal.line(f"[red]castor failed[/]: {type(error).__name__}: {first}\nthe whole story is in {log}")
        raise typer.Exit(EXIT_FAILURE) from None
