"""Checkpoints of a stage: which is the newest, which go, and what is said of one that does not belong there."""

import pytest

from castor.io.checkpoint import mark_files, repair_folders, verify_folder
from castor.io.errors import CastorError
from castor.io.files import write_json
from castor.run.checkpoints import FORMAT, Checkpoint, Checkpoints
from castor.run.files import TrainingFiles


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(TrainingFiles(tmp_path / "ppo.training"))


def commit(checkpoints, step, keep=2, every=None, **record):
    staged = checkpoints.stage(step)
    made = Checkpoint(staged.aside, step)
    made.write_record(**({"stage": "ppo", "key": "k"} | record))
    checkpoints.commit(staged, step, mark_files(staged.aside, [made.record]), keep=keep, every=every)


def steps(checkpoints):
    return [each.step for each in checkpoints.all()]


def test_the_newest_are_kept_and_every_kth(checkpoints):
    assert checkpoints.newest() is None
    for step in range(1, 12):
        commit(checkpoints, step, keep=2, every=5)
        verify_folder(checkpoints.newest().folder)
    assert steps(checkpoints) == [5, 10, 11]
    assert checkpoints.newest().step == 11


def test_a_checkpoint_that_was_not_named_yet_is_not_the_newest(checkpoints):
    """The process ended between the rename and the naming: the next one comes to that step again."""
    commit(checkpoints, 1)
    staged = checkpoints.stage(2)
    staged.commit({})
    assert checkpoints.newest().step == 1
    checkpoints.stage(2).discard()
    assert steps(checkpoints) == [1]  # there may be no room for both
    commit(checkpoints, 2)
    assert (steps(checkpoints), checkpoints.newest().step) == ([1, 2], 2)


def test_what_a_killed_process_had_not_removed_goes_with_the_rest(checkpoints, monkeypatch):
    """Nothing of a checkpoint stays in its place when some of it is gone."""
    for step in (1, 2):
        commit(checkpoints, step)
    place = checkpoints.files.folder

    def killed(folder):
        next(folder.iterdir()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            commit(checkpoints, 3)
    assert (steps(checkpoints), checkpoints.newest().step) == ([2, 3], 3)
    assert len([*place.glob(".step-*")]) == 1
    repair_folders(place)
    assert sorted(path.name for path in place.iterdir()) == ["newest.json", "step-000000002", "step-000000003"]


def test_what_is_not_whole_is_no_checkpoint(checkpoints):
    commit(checkpoints, 1)
    checkpoints.files.checkpoint(2).mkdir()
    assert steps(checkpoints) == [1]


def test_the_newest_one_may_not_vanish_in_silence(checkpoints):
    for step in (1, 2):
        commit(checkpoints, step)
    checkpoints.newest().folder.rename(checkpoints.files.folder / "moved")
    with pytest.raises(CastorError, match=r"names the checkpoint of step 2, .* to go on from the newest of steps 1"):
        checkpoints.newest()
    checkpoints.files.newest.unlink()
    assert checkpoints.newest().step == 1


@pytest.mark.parametrize("text", ["", "{}", '{"step": null}', "[1]"])
def test_a_damaged_name_is_said_so(checkpoints, text):
    commit(checkpoints, 1)
    checkpoints.files.newest.write_text(text)
    with pytest.raises(CastorError, match=r"newest\.json is damaged: remove it"):
        checkpoints.newest()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"format": FORMAT + 1}, "was written by a newer Castor"),
        ({"format": FORMAT - 1}, "was written by an older Castor"),
        ({"stage": "other"}, "the checkpoint of step 3 of other in another run"),
        ({"key": "other"}, "the checkpoint of step 3 of ppo in another run"),
        ({"step": 4}, "the checkpoint of step 4 of ppo in another run"),
    ],
)
def test_a_checkpoint_that_does_not_belong_there_is_named(checkpoints, record, message):
    commit(checkpoints, 3)
    newest = checkpoints.newest()
    assert newest.read_record("ppo", {"k"})["step"] == 3
    write_json(newest.record, newest.read_record("ppo", {"k"}) | record)
    with pytest.raises(CastorError, match=message):
        newest.read_record("ppo", {"k"})


def test_a_checkpoint_that_is_not_what_was_written_is_not_put_in_place(checkpoints):
    commit(checkpoints, 1)
    staged = checkpoints.stage(2)
    (staged.aside / "part").write_text("whole")
    marks = mark_files(staged.aside, [staged.aside / "part"])
    (staged.aside / "part").write_text("who")
    with pytest.raises(CastorError, match="part is not as it was written"):
        checkpoints.commit(staged, 2, marks, keep=1, every=None)
    staged.discard()
    assert (steps(checkpoints), checkpoints.newest().step) == ([1], 1)
