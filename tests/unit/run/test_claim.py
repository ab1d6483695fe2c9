"""Who may go on from what a stage left when it was cut short."""

import pytest

from castor.io.errors import CastorError
from castor.run.claim import Claim, Inputs, accepted_keys
from castor.run.files import TrainingFiles
from tests.plans import claim_of


@pytest.fixture
def files(tmp_path):
    """A stage's folder with checkpoints of two steps, and what was made from its rows."""
    files = TrainingFiles(tmp_path / "sft.training")
    claim_of("sft", lr=0.1, engine={"dtype": "auto"}).make(files)
    for step in (9, 10):
        files.checkpoint(step).mkdir()
    files.samples.mkdir()
    files.reference_logprobs.touch()
    return files


def test_the_same_inputs_go_on(files):
    claim_of("sft", lr=0.1, engine={"dtype": "auto"}).make(files)
    assert files.steps() == [9, 10]
    assert files.samples.is_dir()


def test_fresh_starts_over(files):
    claim_of("sft", fresh=True, lr=0.1, engine={"dtype": "auto"}).make(files)
    assert files.steps() == []
    assert not files.samples.exists()


def test_other_inputs_are_refused_by_name_and_lose_nothing(files):
    other = Claim(
        "sft", Inputs({"lr": 0.2, "engine": {"dtype": "float32"}, "new": 1}, {"rows.jsonl": "b"}, {"model": "k"})
    )
    with pytest.raises(CastorError) as refused:
        other.make(files)
    assert str(refused.value) == (
        "sft was cut short after step 10, and has changed since: lr 0.1 -> 0.2; engine.dtype auto -> float32; "
        "new null -> 1; rows.jsonl is another; stage:model was made another way. Undo that to go on; --accept-changes "
        "goes on from step 10 all the same, --fresh starts the stage over"
    )
    assert files.steps() == [9, 10]
    assert files.samples.is_dir()


def test_accepted_changes_keep_the_checkpoints_and_drop_what_was_made_from_other_inputs(files):
    before = accepted_keys(files)
    changed = claim_of("sft", accept_changes=True, lr=0.2)
    changed.make(files)
    assert files.steps() == [9, 10]
    assert not files.samples.exists()
    assert not files.reference_logprobs.exists()
    assert accepted_keys(files) == {*before, changed.inputs.key}
    claim_of("sft", lr=0.2).make(files)  # the next time it needs no word
    assert files.steps() == [9, 10]


def test_without_a_checkpoint_there_is_nothing_to_lose(tmp_path):
    files = TrainingFiles(tmp_path / "sft.training")
    claim_of("sft", lr=0.1).make(files)
    files.samples.mkdir()
    claim_of("sft", lr=0.2).make(files)
    assert not files.samples.exists()


def test_a_long_list_of_changes_is_cut(files):
    with pytest.raises(CastorError, match=r"n11 null -> 11; and 10 more\. Undo that"):
        claim_of("sft", lr=0.1, engine={"dtype": "auto"}, **{f"n{i}": i for i in range(22)}).make(files)
