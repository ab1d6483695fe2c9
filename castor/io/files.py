"""Files that are either whole or absent, and fingerprints of files and values."""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from castor.io.errors import CastorError


@contextmanager
def atomic_write(path: Path | str, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Open a file beside `path` for writing (UTF-8); rename it to `path` once it is complete and on disk.

    A reader sees the old content or the new, never a part, even after a crash. Missing parent folders are made. If the
    body or the write fails, `path` is left as it was and nothing is left beside it.

    Raises CastorError when the disk or the quota is full.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    # Lone surrogates cannot be encoded; backslashreplace writes them as \udXXX, which inside JSON is their own escape.
    text = {} if mode == "wb" else {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, mode, **text) as handle:  # type: ignore[call-overload]  # a literal mode meets **kwargs
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(aside, path)
        sync(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(_nearest_folder(path)).free
        raise CastorError(
            f"cannot write {path}: {os.strerror(error.errno)} ({free:,} bytes free); make room or choose another folder"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on disk: without the latter a crash may undo a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in path.absolute().parents if folder.is_dir())


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
