"""Files that are either whole or absent, and fingerprints of files and values."""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from castor.io.errors import CastorError

FULL = (errno.ENOSPC, errno.EDQUOT)


def local_path(name: Path | str) -> Path:
    """The path `name`, in which a leading `~` or `~user` is a home folder. Raises CastorError where that is unknown."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise CastorError(f"{name}: no home folder is known for {Path(name).parts[0]}; write the path out") from None


@contextmanager
def refusals_named(path: Path | str) -> Iterator[None]:
    """Around what opens, makes or renames `path`: the system's refusal becomes a CastorError that names the reason."""
    path = Path(path)
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(path, error) from error
        above = [path.absolute()] * (error.errno == errno.EEXIST) + list(path.absolute().parents)
        file = next((each for each in above if each.exists() and not each.is_dir()), None)
        reason = f"{file} is a file" if file else error.strerror
        raise CastorError(f"cannot write {path}: {reason}; choose another place") from error


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents where they are missing. Raises CastorError where that cannot be."""
    with refusals_named(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def atomic_write(path: Path | str, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Open a file beside `path` for writing (UTF-8); rename it to `path` once it is complete and on disk.

    A reader sees the old content or the new, never a part, even after a crash. Missing parent folders are made. If the
    body or the write fails, `path` is left as it was and nothing is left beside it.

    Raises CastorError when the disk or the quota is full, and when `path` is no place for a file.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    # Lone surrogates cannot be encoded; backslashreplace writes them as \udXXX, which inside JSON is their own escape.
    text = {} if mode == "wb" else {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
    make_folder(path.parent)
    with refusals_named(path):
        handle = open(aside, mode, **text)  # type: ignore[call-overload]  # noqa: SIM115  # closed below
    try:
        with handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        with refusals_named(path):
            os.replace(aside, path)
        sync_to_disk(path.parent)  # without this a crash may bring the old name back
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise disk_full(path, error) from error
    finally:
        aside.unlink(missing_ok=True)


def disk_full(path: Path, error: OSError) -> CastorError:
    """What to say when `path` cannot be written because the disk, or the quota, is full."""
    folder = next(folder for folder in path.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(folder).free
    reason = os.strerror(error.errno or errno.ENOSPC)
    return CastorError(f"cannot write {path}: {reason} ({free:,} bytes free); make room or choose another folder")


def sync_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` atomically as UTF-8. Raises as `atomic_write`."""
    with atomic_write(path) as handle:
        handle.write(text)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` atomically as indented JSON. Raises as `atomic_write`, and ValueError for NaN or infinity."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The JSON value in the file. Raises FileNotFoundError, and ValueError when it is not JSON."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_jsonl(path: Path | str, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, atomically. Raises as `atomic_write`, and ValueError for NaN or infinity."""
    with atomic_write(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: Path | str) -> list[Any]:
    """The JSON values in the file, one a line. Raises FileNotFoundError, and ValueError when a line is not JSON."""
    with open(path, encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def folder_size(folder: Path | str) -> int:
    """The bytes of all files in a folder; those that vanish meanwhile count nothing."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += os.lstat(os.path.join(parent, name)).st_size
    return size


def sha256_file(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """The SHA-256 of `value` as canonical JSON (sorted keys, no spaces, ASCII), in hexadecimal.

    Equal JSON values have equal fingerprints whatever the order of their keys. Raises TypeError for what JSON cannot
    hold and ValueError for NaN or infinity.
    """
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
