"""Files and folders that cannot be written, and the permissions of those that can."""

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from castor.io.checkpoint import atomic_folder
from castor.io.errors import CastorError
from castor.io.files import atomic_write, local_path, make_folder, write_jsonl, write_text
from castor.io.terminal import captured


def log_line(path):
    with captured(path):
        print("logged")


def save_folder(path):
    with atomic_folder(path) as aside:
        (aside / "state").write_text("x")


WRITERS = [lambda path: write_text(path, "x"), lambda path: write_jsonl(path, [1]), save_folder, make_folder, log_line]


@pytest.fixture(params=WRITERS, ids=["text", "jsonl", "folder", "make_folder", "log"])
def write(request):
    return request.param


def test_a_parent_that_is_a_file_is_named(tmp_path, write):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CastorError, match=rf"cannot write .*: {tmp_path / 'file'} is a file; choose another place"):
        write(tmp_path / "file" / "deep" / "result")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
def test_a_place_that_takes_no_folder_is_named(write):
    with pytest.raises(CastorError, match=r"cannot write /proc/x.*; choose another place"):
        write(Path("/proc/x/result"))


def test_a_name_that_is_too_long_is_said(tmp_path, write):
    with pytest.raises(CastorError, match="File name too long"):
        write(tmp_path / ("x" * 300))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_is_said(tmp_path, write):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(CastorError, match="Permission denied"):
        write(tmp_path / "deep" / "result")
    tmp_path.chmod(0o700)


def test_a_folder_in_the_place_of_a_file_is_said(tmp_path):
    for write in (lambda: write_text(tmp_path, "x"), lambda: log_line(tmp_path)):
        with pytest.raises(CastorError, match=f"cannot write {tmp_path}: Is a directory"):
            write()


def test_a_file_in_the_place_of_a_folder_is_said(tmp_path):
    write_text(tmp_path / "a", "x")
    with pytest.raises(CastorError, match=f"{tmp_path / 'a'} is a file"):
        make_folder(tmp_path / "a")


def test_a_full_disk_is_said(small_disk, write):
    with open(small_disk / "filling", "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 12)):
            pass
    if write is make_folder:
        return  # an empty folder takes no room
    with pytest.raises(CastorError, match=r"No space left on device|the disk is full"):
        write(small_disk / "result")


def test_what_the_body_raises_is_not_taken_for_a_refusal(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        (tmp_path / "source").read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_permissions_follow_the_umask(tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        log_line(tmp_path / "logs" / "a.log")
        write_text(tmp_path / "a.txt", "x")
        with atomic_folder(tmp_path / "saved") as aside:
            for name, mode in {"weights": 0o600, "copied": 0o755, "plain": 0o640}.items():
                (aside / name).write_text("x")
                (aside / name).chmod(mode)
            (aside / "deep").mkdir(mode=0o700)
            (aside / "deep" / "state").write_text("x")
            (aside / "link").symlink_to(tmp_path / "a.txt")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {file}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {folder}


def test_local_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a") == tmp_path / "a"
    assert str(local_path("a/~b")) == "a/~b"
    with pytest.raises(CastorError, match="no home folder is known for ~nobody-here"):
        local_path("~nobody-here/a")
