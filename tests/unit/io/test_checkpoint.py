import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import save_file

from castor.io.checkpoint import MANIFEST, atomic_folder, repair_folders, verify_folder
from castor.io.errors import CastorError
from castor.io.files import read_json, sha256_file
from tests.conftest import ROOT


def save(folder, text, name="state"):
    with atomic_folder(folder) as aside:
        (aside / name).write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole_with_the_hash_of_every_file(tmp_path):
    with atomic_folder(tmp_path / "deep" / "saved") as aside:
        assert aside.parent == tmp_path / "deep"  # the same file system, so that a rename suffices
        assert not (tmp_path / "deep" / "saved").exists()
        (aside / "ranks").mkdir()
        (aside / "ranks" / "0").write_bytes(b"\0\1")
        (aside / "state").write_text("é")
    folder = tmp_path / "deep" / "saved"
    hashes = read_json(folder / MANIFEST)
    assert hashes == {name: sha256_file(folder / name) for name in ("ranks/0", "state")}
    assert names(folder.parent) == ["saved"]
    verify_folder(folder)


def test_a_second_save_replaces_the_first(tmp_path):
    save(tmp_path / "saved", "one", "only in the first")
    save(tmp_path / "saved", "two")
    assert names(tmp_path / "saved") == [MANIFEST, "state"]
    assert (tmp_path / "saved" / "state").read_text() == "two"
    assert names(tmp_path) == ["saved"]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("existing", [True, False])
def test_a_body_that_fails_leaves_everything_as_it_was(tmp_path, error, existing):
    folder = tmp_path / "saved"
    if existing:
        save(folder, "old")

    def fail():
        with atomic_folder(folder) as aside:
            (aside / "state").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(tmp_path) == (["saved"] if existing else [])
    if existing:
        assert (folder / "state").read_text() == "old"
        verify_folder(folder)


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    save(folder, "old")
    replace = os.replace

    def refuse(source, target):
        if str(source).endswith(".tmp") and target == folder:
            raise PermissionError("no")
        replace(source, target)

    monkeypatch.setattr("castor.io.checkpoint.os.replace", refuse)
    with pytest.raises(PermissionError):
        save(folder, "new")
    assert names(tmp_path) == ["saved"]
    assert (folder / "state").read_text() == "old"


def test_a_reader_never_sees_half_a_folder(tmp_path):
    """While a folder is replaced over and over, it is either complete or, between two renames, absent."""
    folder, stop, wrong = tmp_path / "saved", threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                seen = {(folder / name).read_text() for name in ("first", "second")}
            except FileNotFoundError:
                continue
            if any(len(text) != 5000 for text in seen):
                wrong.append(seen)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(20):
        with atomic_folder(folder) as aside:
            for name in ("first", "second"):
                (aside / name).write_text(f"{number:05}" * 1000)
    stop.set()
    reader.join()
    assert not wrong


@pytest.mark.parametrize("damage", ["flip", "shorten", "remove"])
def test_a_damaged_file_is_named(tmp_path, damage):
    save(tmp_path / "saved", "content")
    path = tmp_path / "saved" / "state"
    if damage == "remove":
        path.unlink()
    else:
        path.write_text("contenT" if damage == "flip" else "conten")
    with pytest.raises(CastorError, match=rf"{path} is missing or damaged"):
        verify_folder(tmp_path / "saved")


def test_a_folder_without_a_manifest_is_named(tmp_path):
    with pytest.raises(CastorError, match=f"has no {MANIFEST}"):
        verify_folder(tmp_path)


def write_safetensors(folder):
    save_file({"weight": torch.ones(1 << 20)}, folder / "model.safetensors")


def write_torch(folder):
    torch.save({"weight": torch.ones(1 << 20)}, folder / "model.pt")


def write_plainly(folder):
    (folder / "model.bin").write_bytes(bytes(4 << 20))


@pytest.mark.parametrize("write", [write_safetensors, write_torch, write_plainly])
def test_a_full_disk_is_said_so_and_loses_nothing(small_disk, write):
    folder = small_disk / "saved"
    save(folder, "old")
    message = r"the disk is full: .*saved could not be saved \(\d+ MiB free\)"
    with pytest.raises(CastorError, match=message), atomic_folder(folder) as aside:
        write(aside)
    assert names(small_disk) == ["saved"]
    assert (folder / "state").read_text() == "old"
    verify_folder(folder)
    save(folder, "new")  # what was half written does not take room any more
    assert (folder / "state").read_text() == "new"


def test_another_failure_on_a_disk_with_room_is_not_called_a_full_disk(small_disk):
    with pytest.raises(RuntimeError, match="boom"), atomic_folder(small_disk / "saved"):
        raise RuntimeError("boom")
    assert names(small_disk) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from castor.io import checkpoint
replace = os.replace
calls = 0

def die_before(source, target):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

checkpoint.os.replace = die_before
with checkpoint.atomic_folder(Path(sys.argv[1])) as aside:
    (aside / "state").write_text("new")
"""


@pytest.mark.parametrize(("call", "kept"), [(1, "old"), (2, "old"), (3, "new")])
def test_a_process_that_is_killed_while_it_replaces_a_folder(tmp_path, call, kept):
    """It dies before the manifest is in place (1), before the old folder is moved (2), before the new one is (3)."""
    folder = tmp_path / "saved"
    save(folder, "old")
    died = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(call)], cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    assert folder.exists() == (call < 3)
    assert repair_folders(tmp_path) == ([folder] if call == 3 else [])
    assert (folder / "state").read_text() == kept
    verify_folder(folder)
    assert names(tmp_path) == ["saved"]
    assert repair_folders(tmp_path) == []


def test_repair_leaves_alone_what_is_not_its_own(tmp_path):
    for name in (".git", ".cache.old", ".notes.0123456789ab.tmp.txt"):
        (tmp_path / name).mkdir()
    before = names(tmp_path)
    assert repair_folders(tmp_path) == []
    assert names(tmp_path) == before
