"""How a command that logs to a file ends when it fails."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from castor.io.ending import Ended, asked_to_end
from castor.io.errors import CastorError

if TYPE_CHECKING:
    from castor.io.terminal import Terminal

EXIT_FAILURE = 1
NOTHING_AGAIN = "the same command does not run the finished stages again"


class Interrupted(Exception):
    """An interrupt on its way out through typer, which would turn a KeyboardInterrupt into exit code 1.

    Its text says what the same command does next.
    """


@contextmanager
def failures_told(terminal: Terminal, log: Path) -> Iterator[None]:
    """A failure that cannot be put right from its message: the traceback to the log, one sentence to the terminal.

    What fails after an interrupt fails because of it: the actors got the signal too, and are missed in the clearing up.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(NOTHING_AGAIN) from None
    except Ended as ended:
        raise Interrupted(str(ended)) from None
    except Exception as error:
        if isinstance(error, CastorError) and not asked_to_end():
            if error.__cause__ is not None:
                traceback.print_exc()  # of the user's own function, say
            raise
        traceback.print_exc()  # stderr is the log here
        if asked_to_end():
            raise Interrupted(NOTHING_AGAIN) from None
        first = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        terminal.line(f"[red]castor failed[/]: {type(error).__name__}: {first}\nthe whole story is in {log}")
        raise typer.Exit(EXIT_FAILURE) from None
