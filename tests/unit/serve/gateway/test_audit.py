"""The audit log: what it says, what it does not give away, and what a full disk does to it."""

import hashlib
import hmac
import json
import multiprocessing
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from castor.io.errors import CastorError
from castor.io.files import read_jsonl
from serve.gateway.audit import AuditError, AuditLog, Entry

ENTRY = Entry(
    event="withheld", request_id="chatcmpl-1", key_id="0123abcd", policy="ppo_lag@0", guard="withhold",
    prompt="how?", answer="so\nand so", cost=2.5, flagged=("drug_abuse,weapons,banned_substance",), severity=3,
)  # fmt: skip
NOW = datetime(2030, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "audit.jsonl"


def test_an_entry(path: Path) -> None:
    log = AuditLog(path, now=lambda: NOW)
    log.write(ENTRY)
    log.write(Entry("judge_failed", "r", None, "sft@3", "annotate", "p", "", error="judge_timeout"))
    first, second = read_jsonl(path)
    salt = log.salt_path.read_bytes()
    assert len(salt) == 32
    assert first == {
        "time": "2030-01-31T12:00:00.123Z", "event": "withheld", "request_id": "chatcmpl-1", "key_id": "0123abcd",
        "policy": "ppo_lag@0", "guard": "withhold", "cost": 2.5, "flagged": ["drug_abuse,weapons,banned_substance"],
        "severity": 3, "error": None,
        "prompt_sha256": hmac.new(salt, b"how?", hashlib.sha256).hexdigest(), "prompt_characters": 4,
        "answer_sha256": hmac.new(salt, b"so\nand so", hashlib.sha256).hexdigest(), "answer_characters": 9,
    }  # fmt: skip
    assert (second["key_id"], second["cost"], second["error"]) == (None, None, "judge_timeout")
    assert log.hash_of("how?") == first["prompt_sha256"]


def test_texts_are_written_when_asked_for_and_not_otherwise(path: Path) -> None:
    AuditLog(path).write(ENTRY)
    assert "how?" not in path.read_text()
    AuditLog(path, texts=True).write(ENTRY)
    first, second = read_jsonl(path)
    assert (second.pop("prompt"), second.pop("answer")) == ("how?", "so\nand so")
    assert first | {"time": None} == second | {"time": None}


def test_hashes_are_the_same_after_a_restart_and_others_in_another_log(path: Path) -> None:
    first, again, other = AuditLog(path), AuditLog(path), AuditLog(path.with_name("other.jsonl"))
    assert first.hash_of("no") == again.hash_of("no") != other.hash_of("no")
    assert first.hash_of("no") != hashlib.sha256(b"no").hexdigest()


def test_only_the_owner_reads_log_and_salt(path: Path) -> None:
    before = os.umask(0)
    try:
        log = AuditLog(path, max_bytes=1)
        for _ in range(2):
            log.write(ENTRY)
    finally:
        os.umask(before)
    assert [file.stat().st_mode & 0o777 for file in (path, path.with_name("audit.jsonl.1"), log.salt_path)] == [
        0o600
    ] * 3


def test_texts_that_are_no_utf8(path: Path) -> None:
    log = AuditLog(path, texts=True)
    log.write(replace(ENTRY, prompt="half \ud800 a pair", answer="line\u2028end\r\n\0"))
    (row,) = read_jsonl(path)
    assert row["prompt"] == "half \ud800 a pair"
    assert row["answer"] == "line\u2028end\r\n\0"


def test_a_cost_that_is_no_number_is_not_written(path: Path) -> None:
    log = AuditLog(path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write(replace(ENTRY, cost=float("nan")))
    assert path.read_bytes() == b""


def _ids(path: Path) -> list[str]:
    return [row["request_id"] for row in read_jsonl(path)]


def test_full_files_are_set_aside_and_the_oldest_goes(path: Path) -> None:
    AuditLog(path).write(ENTRY)
    one = path.stat().st_size
    log = AuditLog(path, max_bytes=2 * one, files=3)
    for number in range(2, 8):
        log.write(replace(ENTRY, request_id=f"chatcmpl-{number}"))
    assert _ids(path) == ["chatcmpl-7"]
    assert _ids(path.with_name("audit.jsonl.1")) == ["chatcmpl-5", "chatcmpl-6"]
    assert _ids(path.with_name("audit.jsonl.2")) == ["chatcmpl-3", "chatcmpl-4"]
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.salt",
    ]  # fmt: skip


def test_one_file_alone(path: Path) -> None:
    log = AuditLog(path, max_bytes=1, files=1)
    for number in range(3):
        log.write(replace(ENTRY, request_id=str(number)))
    assert _ids(path) == ["2"]
    assert not path.with_name("audit.jsonl.1").exists()


def test_a_log_that_somebody_moved_away_is_begun_anew(path: Path) -> None:
    log = AuditLog(path)
    log.write(ENTRY)
    path.rename(path.with_name("kept.jsonl"))
    log.write(replace(ENTRY, request_id="2"))
    assert _ids(path) == ["2"]


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond this, after it has written what still fits, as a full disk does.

    Files of other programs in this process must not be written meanwhile.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_is_an_error_that_leaves_whole_entries(path: Path) -> None:
    log = AuditLog(path)
    log.write(ENTRY)
    before = path.read_bytes()
    with _files_of_at_most(len(before) + 50):
        for _ in range(3):
            with pytest.raises(AuditError, match=f"cannot write a withheld entry of request chatcmpl-1 to {path}"):
                log.write(ENTRY)
    assert path.read_bytes() == before
    log.write(replace(ENTRY, request_id="2"))  # there is room again
    assert _ids(path) == ["chatcmpl-1", "2"]


def test_a_folder_that_is_gone_is_an_error_not_a_loss(path: Path) -> None:
    log = AuditLog(path)
    path.parent.rename(path.parent.with_name("elsewhere"))
    with pytest.raises(AuditError, match="No such file or directory"):
        log.write(ENTRY)


def test_an_entry_that_a_crash_tore_does_not_swallow_the_next(path: Path) -> None:
    log = AuditLog(path)
    log.write(ENTRY)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    log.write(ENTRY)
    lines = path.read_bytes().splitlines(keepends=True)
    assert (lines[0], lines[1]) == (whole, whole[:20] + b"\n")
    assert json.loads(lines[2])["request_id"] == "chatcmpl-1"


def test_places_that_take_no_log(tmp_path: Path, path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CastorError, match="cannot write"):
        AuditLog(tmp_path / "file" / "audit.jsonl")
    with pytest.raises(CastorError, match="cannot write"):
        AuditLog(tmp_path)
    salt = AuditLog(path).salt_path
    salt.write_bytes(b"short")
    with pytest.raises(CastorError, match=f"{salt} is damaged"):
        AuditLog(path)
    assert salt.read_bytes() == b"short"


def _write_many(path: Path, name: str) -> None:
    log = AuditLog(path, max_bytes=20_000, files=50)

    def write(thread: int) -> None:
        for number in range(50):
            log.write(replace(ENTRY, request_id=f"{name}-{thread}-{number}"))

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_processes_and_threads_share_a_log(path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_write_many, args=(path, f"p{number}")) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    files = [file for file in path.parent.iterdir() if file != AuditLog(path).salt_path]
    assert len(files) > 5
    assert max(file.stat().st_size for file in files) <= 20_000
    rows = [row for file in files for row in read_jsonl(file)]
    assert {row["request_id"] for row in rows} == {
        f"p{p}-{t}-{n}" for p in range(3) for t in range(2) for n in range(50)
    }
    assert len(rows) == 300
    assert len({row["prompt_sha256"] for row in rows}) == 1  # one salt, whoever came first
