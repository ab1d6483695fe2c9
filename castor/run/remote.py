"""Copies of a stage's checkpoints at a URL, for a run whose disk may be lost with its node."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from castor.io.checkpoint import MANIFEST, mark_files, verify_folder
from castor.io.errors import CastorError, first_line
from castor.run.checkpoints import Checkpoint, Checkpoints

log = logging.getLogger(__name__)
NEWEST = "newest.json"
STEP = "step-{:09d}"
CONFIG = "config.yaml"  # of a run, beside its stages


def open_url(url: str) -> tuple[Any, str]:
    """The file system of a URL of any kind that fsspec opens, and the place in it.

    Raises CastorError where the kind is unknown, or what it needs is not installed.
    """
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise CastorError(f"{url} cannot be opened: {first_line(error)}") from None
    return filesystem, str(root).rstrip("/")


class RemoteCheckpoints:
    """Those of one stage. A copy is complete once its manifest, which comes last, is there."""

    def __init__(self, url: str, run: str, stage: str, config: Path | None = None) -> None:
        """The copies are in RUN/STAGE below `url`; the run's `config` is copied beside them.

        Raises CastorError as `open_url`.
        """
        self.url = f"{url.rstrip('/')}/{run}/{stage}"
        self.filesystem, self.root = open_url(self.url)
        self._config = None if config is None else (config, f"{self.root.removesuffix(f'/{stage}')}/{CONFIG}")

    def upload(self, checkpoint: Checkpoint, keep: int, every: int | None) -> None:
        """Copy a checkpoint, let `newest.json` name it, then drop the copies that are not to be kept.

        Raises whatever the file system does.
        """
        folder, place = checkpoint.folder, self._place(checkpoint.step)
        if self.filesystem.exists(f"{place}/{MANIFEST}"):
            self.filesystem.rm(f"{place}/{MANIFEST}")
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
        for path in (*paths, folder / MANIFEST):
            target = f"{place}/{path.relative_to(folder).as_posix()}"
            self.filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.filesystem.put_file(str(path), target)
        with self.filesystem.open(f"{self.root}/{NEWEST}", "w") as handle:
            handle.write(json.dumps({"step": checkpoint.step}))
        if self._config is not None:
            self.filesystem.put_file(str(self._config[0]), self._config[1])
        self._prune(checkpoint.step, keep, every)

    def newest(self) -> int | None:
        """The step of the one to go on from; None: there is none. Raises CastorError when the URL cannot be read."""
        try:
            if not self.filesystem.exists(f"{self.root}/{NEWEST}"):
                return None
            with self.filesystem.open(f"{self.root}/{NEWEST}") as handle:
                return int(json.load(handle)["step"])
        except Exception as error:  # every kind of file system has its own
            raise CastorError(f"{self.url} cannot be read: {type(error).__name__}: {first_line(error)}") from error

    def download(self, step: int, checkpoints: Checkpoints) -> Checkpoint:
        """Put a copy among the stage's checkpoints, as the newest one.

        Raises CastorError when it cannot be read, is not complete, or is damaged.
        """
        staged, place = checkpoints.stage(step), self._place(step)
        try:
            for name in self.filesystem.find(place):
                path = staged.aside / name.removeprefix(f"{place}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                self.filesystem.get_file(name, str(path))
            verify_folder(staged.aside, f"remove {self.url}/{NEWEST} to start over")
            (staged.aside / MANIFEST).unlink()
            marks = mark_files(staged.aside, [path for path in staged.aside.rglob("*") if path.is_file()])
            return checkpoints.commit(staged, step, marks, keep=1, every=None)
        except CastorError:
            raise
        except Exception as error:  # every kind of file system has its own
            raise CastorError(f"{place} cannot be read: {type(error).__name__}: {first_line(error)}") from error
        finally:
            staged.discard()

    def _prune(self, newest: int, keep: int, every: int | None) -> None:
        steps = sorted(int(name.rpartition("step-")[2]) for name in self.filesystem.ls(self.root, detail=False)
                       if "/step-" in name)  # fmt: skip
        kept = [step for step in steps if step <= newest][-keep:]
        for step in steps:
            if step not in kept and (every is None or step % every or step > newest):
                self.filesystem.rm(self._place(step), recursive=True)

    def _place(self, step: int) -> str:
        return f"{self.root}/{STEP.format(step)}"


class Uploader:
    """Uploads checkpoints beside a run, one at a time; where several wait, the newest. A failure costs a copy, and not
    the run: it is told of, and the next checkpoint tries again.
    """

    def __init__(self, remote: RemoteCheckpoints, keep: int, every: int | None, tell: Callable[[str], None]) -> None:
        self.remote, self.keep, self.every, self.tell = remote, keep, every, tell
        self.saved: int | None = None  # the step of the newest copy
        self._threads = ThreadPoolExecutor(1, "upload")
        self._running: tuple[Checkpoint, Future[None]] | None = None
        self._waiting: Checkpoint | None = None
        self._failed = False

    def offer(self, checkpoint: Checkpoint) -> None:
        """Upload it when nothing else is under way."""
        self._waiting = checkpoint
        self.poll()

    @property
    def reading(self) -> frozenset[int]:
        """The steps whose folders are needed still."""
        running = [] if self._running is None else [self._running[0]]
        return frozenset(each.step for each in (*running, self._waiting) if each is not None)

    def poll(self, wait_s: float = 0.0) -> None:
        """See how the upload is, and begin the next one; where `wait_s` is not 0, wait so long for each of them."""
        while self._running is not None or self._waiting is not None:
            if self._running is None:
                assert self._waiting is not None
                checkpoint, self._waiting = self._waiting, None
                work = self._threads.submit(self.remote.upload, checkpoint, self.keep, self.every)
                self._running = checkpoint, work
            checkpoint, work = self._running
            if not (wait_s or work.done()):
                return
            self._running = None
            try:
                work.result(wait_s or None)
            except Exception as error:  # every kind of file system has its own
                self._tell_of_failure(checkpoint.step, error)
            else:
                self.saved = checkpoint.step
                if self._failed:
                    self.tell(f"copied again to {self.remote.url}: the state after step {checkpoint.step}")
                self._failed = False

    def _tell_of_failure(self, step: int, error: Exception) -> None:
        log.warning("the state after step %d was not copied to %s", step, self.remote.url, exc_info=error)
        if not self._failed:
            since = "none is there" if self.saved is None else f"the newest copy is of step {self.saved}"
            self.tell(
                f"[yellow]the state after step {step} was not copied to {self.remote.url}[/]: {type(error).__name__}: "
                f"{first_line(error)}; {since}, and the next checkpoint tries again"
            )
        self._failed = True
