"""Folders of state that are either whole or absent, with a manifest of hashes."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from castor.io.errors import CastorError
from castor.io.files import FULL, make_folder, read_json, refusals_named, sha256_file, sync_to_disk, write_json

MANIFEST = "manifest.json"
_PROBE_BYTES = 1 << 16


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; put it in `folder`'s place once its content is complete and on disk.

    Every file is hashed into manifest.json and fsynced before the rename. If the body fails, `folder` stays as it was.
    Raises CastorError when the disk is full, and when `folder` is no place for a folder.
    """
    make_folder(folder.parent)
    tag = secrets.token_hex(6)
    aside, old = (folder.with_name(f".{folder.name}.{tag}.{end}") for end in ("tmp", "old"))
    with refusals_named(folder):
        aside.mkdir()
    try:
        yield aside
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        write_json(aside / MANIFEST, {str(path.relative_to(aside)): sha256_file(path) for path in files})
        _use_the_permissions_of(aside)
        for path in files:
            sync_to_disk(path)
        sync_to_disk(aside)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(aside, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        sync_to_disk(folder.parent)
    except Exception as error:
        if _disk_full(error, aside):
            free = shutil.disk_usage(folder.parent).free >> 20
            raise CastorError(
                f"the disk is full: {folder} could not be saved ({free} MiB free) and is as it was before; "
                "make room and run the same command again"
            ) from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def verify_folder(folder: Path) -> None:
    """Raise CastorError unless every file of the manifest is there with the hash it was written with."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CastorError(f"{folder} has no {MANIFEST}: it was not written by Castor, or not to the end")
    for name, digest in read_json(manifest).items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            raise CastorError(f"{path} is missing or damaged: run the stage that makes it again with --fresh")


def _disk_full(error: BaseException, folder: Path) -> bool:
    # safetensors wraps the system's words in an exception of its own
    if getattr(error, "errno", None) in FULL or os.strerror(errno.ENOSPC) in str(error):
        return True
    try:  # torch.save tells of a stream error without its cause: see whether the disk takes anything more
        (folder / ".probe").write_bytes(bytes(_PROBE_BYTES))
    except OSError as refusal:
        return refusal.errno in FULL
    return False


def _use_the_permissions_of(folder: Path) -> None:
    """Give all that is in `folder` its permissions, which the umask decided; plain files are not executable.

    safetensors writes files for their owner only, and copies keep the permissions of what was copied.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(mode if path.is_dir() else mode & 0o666)
