"""The state of an actor on its way to the disk: copied while everybody waits, written while the actor works on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from castor.io.checkpoint import FileMark, disk_full_named, mark_files
from castor.io.files import refusals_named

Write = Callable[[Path], list[Path]]  # writes a copied state into a folder and returns the files


@dataclass(frozen=True)
class Written:
    """What one rank has written of a checkpoint."""

    marks: dict[str, FileMark]  # by the path in the holder's folder
    seconds: float  # it took, beside the actor's work


class Checkpointed(ABC):
    """Base of an actor that holds a part of a run's state: each rank writes and reads its part of the same folder."""

    _writing: Future[Written] | None = None

    @abstractmethod
    def copy_state(self) -> Write | None:
        """A copy of this rank's part, apart from what goes on changing; None: it has none. Collective."""

    @abstractmethod
    def read_state(self, folder: Path, step: int) -> None:
        """Continue from what all ranks, however many, have written into the folder after `step`. Collective."""

    @property
    @abstractmethod
    def state_step(self) -> int | None:
        """The step that this state is the result of; None in the middle of one."""

    def at_step(self) -> int | None:
        """`state_step`."""
        return self.state_step

    def begin_checkpoint(self, folder: Path, step: int) -> bool:
        """Copy the state and begin to write it into `folder`, which is made; False when it is not that of `step`.

        Collective, unless every rank says False.
        """
        if self.state_step != step:
            return False
        write = self.copy_state()
        threads = ThreadPoolExecutor(1, "checkpoint")
        self._writing = threads.submit(_write, write, folder)
        threads.shutdown(wait=False)
        return True

    def finish_checkpoint(self, wait: bool) -> Written | None:
        """What was written, once it is on disk; None while it is not, unless that is to be waited for.

        Raises what stopped the writer: CastorError for a full disk and a folder that cannot be written.
        """
        if self._writing is None:
            raise RuntimeError("no checkpoint was begun")
        if not wait and not self._writing.done():
            return None
        return self._writing.result()  # again and again: another rank may not be done yet


def _write(write: Write | None, folder: Path) -> Written:
    begin = time.monotonic()
    if write is None:
        return Written({}, 0.0)
    with refusals_named(folder), disk_full_named(folder, folder.parent):
        folder.mkdir(parents=True, exist_ok=True)
        marks = mark_files(folder, write(folder))
    return Written(marks, time.monotonic() - begin)
