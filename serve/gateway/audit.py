"""The audit log: which answers were withheld or made anew and why, and where judges failed."""

from __future__ import annotations

import fcntl
import hmac
import itertools
import json
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from castor.io.errors import CastorError
from castor.io.files import make_folder, refusals_named

Event = Literal["withheld", "judge_failed", "regenerated"]
SALT_BYTES = 32


class AuditError(Exception):
    """An entry could not be written: the disk is full, or its folder is gone."""


@dataclass(frozen=True)
class Entry:
    """What happened to one answer."""

    event: Event
    request_id: str
    key_id: str | None  # None: no keys are configured
    policy: str  # name@version
    guard: str  # its mode
    prompt: str
    answer: str
    cost: float | None = None  # > 0 is unsafe
    flagged: tuple[str, ...] = ()  # categories of harm
    severity: int | None = None  # 0 none to 3 severe
    error: str | None = None  # of a judge that failed: its code, e.g. judge_timeout


def _utc_now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """An append-only file of one JSON object a line, which several processes of one machine may share.

    Once it would be longer than `max_bytes` it becomes FILE.1, what was FILE.1 becomes FILE.2, and so on; `files` of
    them are kept in all. Log and salt are readable by their owner alone.

    Without `texts` there is of prompt and answer only their length and HMAC-SHA256, under a random key ("salt") that
    lies in FILE.salt beside it. A plain hash would give short texts away: whoever has the log could hash every short
    question and compare. With the salt one can still check whether a given text is the one that was withheld; without
    it nobody can, so it is what to keep apart, or to delete once the hashes are to mean nothing.

    An entry that cannot be written is an AuditError, and the file ends with the last whole entry. To be counted and
    logged, not to be answered: whoever withholds an answer does so before, and it stays withheld. Entries are handed to
    the operating system one by one, so that they survive the death of the process, though not always of the machine.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 64 * 2**20,
        files: int = 8,
        texts: bool = False,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        """Raises CastorError when the log cannot be written, or its salt cannot be read."""
        self.path, self.salt_path = path, path.with_name(f"{path.name}.salt")
        self._max_bytes, self._files, self._texts, self._now = max_bytes, files, texts, now
        make_folder(path.parent)
        with refusals_named(path):
            os.close(self._open())
        with refusals_named(self.salt_path):
            # Kept open: whoever has locked it, of all threads and processes, is the one who writes.
            self._lock = os.open(self.salt_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._thread_lock = threading.Lock()  # the other lock is of this process
        self._salt = self._read_salt()

    def write(self, entry: Entry) -> None:
        """Append one entry. Waits for the disk and for other processes, so call it in a thread.

        Raises AuditError, and ValueError when the cost is not finite.
        """
        line = json.dumps(self._values(entry), ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self._append(line.encode("utf-8", "backslashreplace"))  # a lone surrogate becomes its escape in JSON
        except OSError as error:
            raise AuditError(
                f"cannot write a {entry.event} entry of request {entry.request_id} to {self.path}: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Let go of the files. Nothing can be written afterwards."""
        with self._thread_lock:
            os.close(self._lock)

    def hash_of(self, text: str) -> str:
        """What stands in the log in place of `text`, in hexadecimal."""
        return hmac.new(self._salt, text.encode("utf-8", "surrogatepass"), "sha256").hexdigest()

    def _values(self, entry: Entry) -> dict[str, Any]:
        values: dict[str, Any] = {
            "time": self._now().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "event": entry.event,
            "request_id": entry.request_id,
            "key_id": entry.key_id,
            "policy": entry.policy,
            "guard": entry.guard,
            "cost": entry.cost,
            "flagged": list(entry.flagged),
            "severity": entry.severity,
            "error": entry.error,
        }
        for name, text in (("prompt", entry.prompt), ("answer", entry.answer)):
            values |= {f"{name}_sha256": self.hash_of(text), f"{name}_characters": len(text)}
        if self._texts:
            values |= {"prompt": entry.prompt, "answer": entry.answer}
        return values

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _append(self, line: bytes) -> None:
        """Write a whole line or nothing of it."""
        with self._thread_lock:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                if self._is_full(len(line)):
                    self._set_aside()
                log = self._open()  # each time: another process, or a person, may have set the file aside
                try:
                    size = os.fstat(log).st_size
                    torn = size > 0 and os.pread(log, 1, size - 1) != b"\n"  # by the death of a machine
                    _write_all(log, b"\n" + line if torn else line, size)
                finally:
                    os.close(log)
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _is_full(self, more: int) -> bool:
        size = self.path.stat().st_size if self.path.exists() else 0
        return size > 0 and size + more > self._max_bytes

    def _set_aside(self) -> None:
        """Rename the files to the next number each. The one that is one too many goes."""
        names = [self.path, *(self.path.with_name(f"{self.path.name}.{number}") for number in range(1, self._files))]
        if len(names) == 1:
            self.path.unlink()
        for old, new in reversed(list(itertools.pairwise(names))):
            if old.exists():
                old.replace(new)

    def _read_salt(self) -> bytes:
        """The salt; the first to have the lock makes it."""
        with refusals_named(self.salt_path):
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                salt = os.pread(self._lock, SALT_BYTES + 1, 0)
                if not salt:
                    salt = secrets.token_bytes(SALT_BYTES)
                    _write_all(self._lock, salt, 0)
                    os.fsync(self._lock)
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        if len(salt) != SALT_BYTES:
            raise CastorError(
                f"{self.salt_path} is damaged: put a copy in its place, or move it away together with {self.path}"
            )
        return salt


def _write_all(file: int, content: bytes, size: int) -> None:
    """Write at the end of a file of `size` bytes; if that fails, the file has `size` bytes again."""
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(file, left) :]
    except OSError:
        os.ftruncate(file, size)
        raise
