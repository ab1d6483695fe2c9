"""One process at a time works in a run's folder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from castor.io.errors import CastorError
from castor.io.files import refusals_named
from castor.run.files import RunFiles

GLANCE_S = 0.1  # far longer than `at_work` holds the lock


@contextmanager
def exclusive(files: RunFiles) -> Iterator[None]:
    """The run's folder for this process alone: two at work in it would remove each other's files.

    Raises CastorError while another process has it. The system lets go of it however this process ends.
    """
    shown = files.shown(files.folder)
    with refusals_named(shown):
        files.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(files.lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not (_locked(lock, fcntl.LOCK_EX) or _locked(lock, fcntl.LOCK_EX, after_s=GLANCE_S)):
            raise CastorError(
                f"another castor (process {os.read(lock, 20).decode() or 'unknown'}) is at work in {shown}: "
                "wait for it, end it, or give another run_dir"
            )
        with refusals_named(shown):
            os.ftruncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
        yield
    finally:
        os.close(lock)


def at_work(files: RunFiles) -> str | None:
    """The number of the process that is at work in the run's folder; None: there is none. Nothing is written.

    Raises CastorError where the lock cannot be read.
    """
    try:
        lock = os.open(files.lock, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CastorError(f"{files.shown(files.lock)} cannot be read: {error.strerror}") from None
    try:
        # A shared lock, so that two who look do not take each other for somebody at work.
        return None if _locked(lock, fcntl.LOCK_SH) else os.read(lock, 20).decode() or "unknown"
    finally:
        os.close(lock)


def _locked(lock: int, kind: int, after_s: float = 0.0) -> bool:
    time.sleep(after_s)
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
