"""Folders of state that are either whole or absent, with a manifest of hashes."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from castor.io.errors import CastorError
from castor.io.files import FULL, make_folder, read_json, refusals_named, sha256_file, sync_to_disk, write_json

MANIFEST = "manifest.json"
_PROBE_BYTES = 1 << 16
_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<tag>[0-9a-f]{12})\.(?P<end>tmp|old)")  # of a folder in the making
_HASHING_THREADS = 8


@dataclass(frozen=True)
class FileMark:
    """What is known of a file by whoever wrote it."""

    sha256: str  # hexadecimal
    size: int  # bytes


def mark_files(folder: Path, paths: Iterable[Path]) -> dict[str, FileMark]:
    """The marks of files in `folder`, by their path in it, once they are on disk."""
    marks = {}
    for path in paths:
        sync_to_disk(path)
        marks[str(path.relative_to(folder))] = FileMark(sha256_file(path), path.stat().st_size)
    return marks


class StagedFolder:
    """A folder in the making: it is filled in `aside`, and `commit` puts it in its place, whole, with a manifest.

    Several processes may write into it; each marks the files it wrote.
    """

    def __init__(self, folder: Path) -> None:
        """Raises CastorError when `folder` is no place for a folder."""
        self.folder = folder
        tag = secrets.token_hex(6)
        self.aside, self._old = (folder.with_name(f".{folder.name}.{tag}.{end}") for end in ("tmp", "old"))
        make_folder(folder.parent)
        with refusals_named(folder):
            self.aside.mkdir()

    def commit(self, marks: Mapping[str, FileMark]) -> None:
        """Put the folder in place of an earlier one. `marks` are of all its files, which are on disk.

        Raises CastorError when what lies there is not what was marked, or when the disk is full.
        """
        with disk_full_named(self.folder, self.aside):
            found = {str(path.relative_to(self.aside)): path for path in self.aside.rglob("*") if path.is_file()}
            wrong = sorted(found.keys() ^ marks.keys())
            wrong += [name for name in found.keys() & marks.keys() if found[name].stat().st_size != marks[name].size]
            if wrong:
                raise CastorError(f"{self.folder} was not saved: {wrong[0]} is not as it was written")
            write_json(self.aside / MANIFEST, {name: marks[name].sha256 for name in sorted(marks)})
            _use_the_permissions_of(self.aside)
            sync_to_disk(self.aside)
            self._rename()

    def discard(self) -> None:
        """Remove what is aside, and what it has replaced."""
        shutil.rmtree(self.aside, ignore_errors=True)
        if self.folder.exists():
            shutil.rmtree(self._old, ignore_errors=True)

    def _rename(self) -> None:
        """No file system renames over a folder that is not empty: a process that ends in between leaves two folders
        aside, and `repair_folders` puts one of them in place.
        """
        if self.folder.exists():
            os.replace(self.folder, self._old)
        try:
            os.replace(self.aside, self.folder)
        except OSError:
            if self._old.exists():
                os.replace(self._old, self.folder)
            raise
        sync_to_disk(self.folder.parent)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; put it in `folder`'s place once its content is complete and on disk.

    Every file is hashed into manifest.json and fsynced before the rename. If the body fails, `folder` stays as it was.
    Raises CastorError when the disk is full, and when `folder` is no place for a folder.
    """
    staged = StagedFolder(folder)
    try:
        with disk_full_named(folder, staged.aside):
            yield staged.aside
            files = sorted(path for path in staged.aside.rglob("*") if path.is_file())
            staged.commit(mark_files(staged.aside, files))
    finally:
        staged.discard()


def remove_folder(folder: Path) -> None:
    """Remove a folder, which is no longer there as soon as any of it is not: a process that is killed meanwhile leaves
    the rest aside, for `repair_folders`.
    """
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.tmp")
    os.replace(folder, aside)
    shutil.rmtree(aside)


@dataclass(frozen=True)
class Leftovers:
    """What is aside and was left there by processes that were killed while they put folders in place."""

    back: Mapping[Path, Path]  # a folder that was moved away and not yet replaced: what comes into its place
    rest: Sequence[Path]  # folders that nobody needs


def find_leftovers(parent: Path) -> Leftovers:
    """Those anywhere below `parent`. Nobody may be writing there."""
    aside = sorted(path for path in parent.rglob(".*") if _LEFT.fullmatch(path.name) and path.is_dir())
    back: dict[Path, Path] = {}
    for old in aside:
        parts = _LEFT.fullmatch(old.name)
        assert parts is not None
        folder, new = old.with_name(parts["name"]), old.with_name(f"{old.name.removesuffix('old')}tmp")
        if parts["end"] == "old" and not folder.exists():
            back.setdefault(folder, new if (new / MANIFEST).is_file() else old)
    return Leftovers(back, [path for path in aside if path not in back.values()])


def repair_folders(parent: Path) -> list[Path]:
    """Clear up after processes that were killed while they put folders in place, anywhere below `parent`.

    A folder that was moved away and not yet replaced comes back: the new one where it is complete, else the old one.
    Everything else that was aside is removed. Nobody may be writing there. Returns the folders that came back.
    """
    back = find_leftovers(parent).back
    for folder, aside in back.items():
        os.replace(aside, folder)
        sync_to_disk(folder.parent)
    for path in find_leftovers(parent).rest:
        if path.is_dir():  # else it lay in one that is gone
            shutil.rmtree(path)
    return list(back)


def verify_folder(folder: Path, remedy: str = "run the stage that makes it again with --fresh") -> None:
    """Raise CastorError unless every file of the manifest is there with the hash it was written with.

    `remedy` says what to do about one that is not.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CastorError(f"{folder} has no {MANIFEST}: it was not written by Castor, or not to the end")
    try:
        hashes = dict(read_json(manifest))
    except (ValueError, TypeError):
        raise CastorError(f"{manifest} is damaged: {remedy}") from None

    def is_right(name: str) -> bool:
        path = folder / name
        return path.is_file() and sha256_file(path) == hashes[name]

    with ThreadPoolExecutor(_HASHING_THREADS) as threads:  # hashing lets other threads run
        for name, right in zip(hashes, threads.map(is_right, hashes), strict=True):
            if not right:
                raise CastorError(f"{folder / name} is missing or damaged: {remedy}")


@contextmanager
def disk_full_named(folder: Path, aside: Path) -> Iterator[None]:
    """Around what writes into `aside`: an error that comes of a full disk becomes a CastorError that says so."""
    try:
        yield
    except Exception as error:
        if isinstance(error, CastorError) or not _disk_full(error, aside):
            raise
        free = shutil.disk_usage(folder.parent).free >> 20
        raise CastorError(
            f"the disk is full: {folder} could not be saved ({free} MiB free) and is as it was before; "
            "make room and run the same command again"
        ) from error


def _disk_full(error: BaseException, folder: Path) -> bool:
    # safetensors wraps the system's words in an exception of its own
    if getattr(error, "errno", None) in FULL or os.strerror(errno.ENOSPC) in str(error):
        return True
    probe = folder / ".probe"
    try:  # torch.save tells of a stream error without its cause: see whether the disk takes anything more
        probe.write_bytes(bytes(_PROBE_BYTES))
    except OSError as refusal:
        return refusal.errno in FULL
    finally:
        probe.unlink(missing_ok=True)
    return False


def _use_the_permissions_of(folder: Path) -> None:
    """Give all that is in `folder` its permissions, which the umask decided; plain files are not executable.

    safetensors writes files for their owner only, and copies keep the permissions of what was copied.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(mode if path.is_dir() else mode & 0o666)
