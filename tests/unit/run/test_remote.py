"""Copies of checkpoints at a URL: what is complete is found, what fails costs a copy and is told of."""

import shutil
import threading

import pytest

from castor.io.checkpoint import MANIFEST, mark_files, verify_folder
from castor.io.errors import CastorError
from castor.run.checkpoints import Checkpoint, Checkpoints
from castor.run.files import TrainingFiles
from castor.run.remote import RemoteCheckpoints, Uploader

PATIENCE_S = 60.0


@pytest.fixture(params=["file", "memory"])
def remote(request, tmp_path):
    url = f"file://{tmp_path / 'bucket'}" if request.param == "file" else f"memory://{tmp_path.name}"
    return RemoteCheckpoints(url, "demo", "round-2/ppo")


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(TrainingFiles(tmp_path / "ppo.training"))


def make(checkpoints, step, keep=9):
    staged = checkpoints.stage(step)
    made = Checkpoint(staged.aside, step)
    made.write_record(stage="ppo", key="k")
    (staged.aside / "learner").mkdir()
    (staged.aside / "learner" / "part").write_text(f"of step {step}")
    files = [path for path in staged.aside.rglob("*") if path.is_file()]
    return checkpoints.commit(staged, step, mark_files(staged.aside, files), keep=keep, every=None)


def steps(remote):
    names = remote.filesystem.ls(remote.root, detail=False)
    return sorted(int(name.rpartition("step-")[2]) for name in names if "step-" in name)


def test_the_newest_copy_comes_back_whole(remote, checkpoints):
    assert remote.newest() is None
    for step in (1, 2, 3, 4):
        remote.upload(make(checkpoints, step), keep=2, every=3 if step > 3 else None)
    assert (remote.newest(), steps(remote)) == (4, [3, 4])
    shutil.rmtree(checkpoints.files.folder)
    back = remote.download(4, checkpoints)
    verify_folder(back.folder)
    assert (back.step, checkpoints.newest().step, back.key) == (4, 4, "k")
    assert (back.folder / "learner" / "part").read_text() == "of step 4"


def test_a_run_that_starts_over_drops_the_copies_of_the_one_before(remote, checkpoints):
    remote.upload(make(checkpoints, 7), keep=2, every=None)
    remote.upload(make(checkpoints, 1), keep=2, every=None)
    assert (remote.newest(), steps(remote)) == (1, [1])


@pytest.mark.parametrize("damage", ["alter", "lose the manifest", "lose a file"])
def test_a_copy_that_is_not_whole_is_refused(remote, checkpoints, damage):
    remote.upload(make(checkpoints, 5), keep=2, every=None)
    shutil.rmtree(checkpoints.files.folder)
    place = f"{remote.root}/step-000000005"
    if damage == "alter":
        with remote.filesystem.open(f"{place}/learner/part", "w") as handle:
            handle.write("something else")
    else:
        remote.filesystem.rm(f"{place}/{MANIFEST if 'manifest' in damage else 'learner/part'}")
    with pytest.raises(CastorError, match="has no manifest" if "manifest" in damage else "missing or damaged: remove"):
        remote.download(5, checkpoints)
    assert checkpoints.all() == []


def test_an_unknown_kind_of_url_is_one_sentence():
    with pytest.raises(CastorError, match="nowhere://x/demo/ppo cannot be opened"):
        RemoteCheckpoints("nowhere://x", "demo", "ppo")


def test_an_upload_that_fails_is_told_of_once_and_the_next_one_tries_again(remote, checkpoints, monkeypatch):
    told, put = [], remote.filesystem.put_file
    uploader = Uploader(remote, keep=2, every=None, tell=told.append)

    def refuse(*args, **options):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(remote.filesystem, "put_file", refuse)
    for step in (1, 2):
        uploader.offer(make(checkpoints, step))
        uploader.poll(PATIENCE_S)
    assert len(told) == 1
    assert "the state after step 1 was not copied to" in told[0]
    assert "OSError: no route to host; none is there, and the next checkpoint tries again" in told[0]
    monkeypatch.setattr(remote.filesystem, "put_file", put)
    uploader.offer(make(checkpoints, 3))
    uploader.poll(PATIENCE_S)
    assert told[1].startswith("copied again to")
    assert (remote.newest(), uploader.saved) == (3, 3)


def test_a_slow_upload_keeps_its_folder_and_skips_what_is_older(remote, checkpoints, monkeypatch):
    told, begun, go, put = [], threading.Event(), threading.Event(), remote.filesystem.put_file
    uploader = Uploader(remote, keep=2, every=None, tell=told.append)

    def wait(*args, **options):
        begun.set()
        assert go.wait(PATIENCE_S)
        put(*args, **options)

    monkeypatch.setattr(remote.filesystem, "put_file", wait)
    uploader.offer(make(checkpoints, 1))
    assert begun.wait(PATIENCE_S)
    for step in (2, 3):
        uploader.offer(make(checkpoints, step))
    assert uploader.reading == {1, 3}
    checkpoints.prune(1, needed=uploader.reading)
    assert [each.step for each in checkpoints.all()] == [1, 3]
    go.set()
    uploader.poll(PATIENCE_S)
    assert (steps(remote), uploader.reading, told) == ([1, 3], frozenset(), [])
