"""One process at a time works in a run's folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from castor.io.errors import CastorError
from castor.io.files import make_folder, refusals_named
from castor.run.files import RunFiles


@contextmanager
def exclusive(files: RunFiles) -> Iterator[None]:
    """The run's folder for this process alone: two at work in it would remove each other's files.

    Raises CastorError while another process has it. The system lets go of it however this process ends.
    """
    shown = files.shown(files.folder)
    make_folder(shown)
    with refusals_named(shown):
        lock = os.open(files.lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CastorError(
                f"another castor (process {os.read(lock, 20).decode() or 'unknown'}) is at work in {shown}: "
                "wait for it, end it, or give another run_dir"
            ) from None
        with refusals_named(shown):
            os.ftruncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
        yield
    finally:
        os.close(lock)
