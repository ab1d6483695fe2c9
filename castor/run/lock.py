"""One process at a time works in a run's folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from castor.io.errors import CastorError
from castor.run.files import RunFiles


@contextmanager
def exclusive(files: RunFiles) -> Iterator[None]:
    """The run's folder for this process alone: two at work in it would remove each other's files.

    Raises CastorError while another process has it. The system lets go of it however this process ends.
    """
    files.folder.mkdir(parents=True, exist_ok=True)
    with open(files.lock, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise CastorError(
                f"another castor (process {file.read().strip() or 'unknown'}) is at work in {files.folder}: "
                "wait for it, end it, or give another run_dir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
