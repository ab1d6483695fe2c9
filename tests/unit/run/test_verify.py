"""What is found wrong with what a run keeps."""

from dataclasses import replace

import pytest

from castor.io.checkpoint import atomic_folder
from castor.io.files import read_json, write_json
from castor.models.lora import adapter_folder
from castor.run.verify import verify
from tests.run_folders import BEFORE_RLHF, STEPS, add_checkpoint, ledger, make_run


def wrong(plan):
    return [finding.wrong for finding in verify(plan) if finding.wrong]


def test_a_ledger_that_lies_although_its_manifest_is_right(tmp_path):
    plan = make_run(tmp_path / "run")
    entries = ledger(2)
    entries[1] = replace(entries[1], responses=entries[1].responses[:-1])
    lying = add_checkpoint(plan, "ppo_lag", 2, entries)
    short = add_checkpoint(plan, "ppo", 3, ledger(2))
    found = wrong(plan)
    assert len(found) == 2
    assert found[0].startswith(f"{lying.ledger}: step 2 was trained on the samples [0] of prompt ")
    assert found[1] == f"{short.ledger} has 2 steps, and ppo took 3"


def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path):
    plan = make_run(tmp_path / "run")
    checkpoint = add_checkpoint(plan, "ppo_lag", 2)
    (checkpoint.folder / "weights").write_bytes(b"")
    (told,) = wrong(plan)
    training = plan.files.stage("ppo_lag").training
    assert told == (
        f"{checkpoint.folder}/weights is missing or damaged: remove {checkpoint.folder}, and {training.newest} if it "
        "names it"
    )


def test_the_newest_checkpoint_may_not_be_gone(tmp_path):
    plan = make_run(tmp_path / "run", ["model"])
    for step in (1, 2):
        newest = add_checkpoint(plan, "sft", step)
    newest.folder.rename(tmp_path / "elsewhere")
    (told,) = wrong(plan)
    assert "names the checkpoint of step 2" in told


def test_checkpoints_that_are_kept_for_good_are_looked_at_too(tmp_path):
    plan = make_run(tmp_path / "run", (*BEFORE_RLHF, "ppo_lag"))
    files, checkpoint = plan.files.stage("ppo_lag"), add_checkpoint(plan, "ppo_lag", 2)
    files.checkpoints.mkdir()
    kept = checkpoint.folder.rename(files.checkpoints / checkpoint.folder.name)
    files.training.newest.unlink()
    assert [finding.what for finding in verify(plan)][-2:] == [kept, kept / "ledger.jsonl"]
    assert not wrong(plan)
    (kept / "weights").unlink()
    assert wrong(plan) == [f"{kept}/weights is missing or damaged: remove {kept}"]


def test_an_adapter_is_looked_at_where_there_is_one(tmp_path):
    plan = make_run(tmp_path / "run", (*BEFORE_RLHF, "ppo_lag"))
    adapter = adapter_folder(plan.model_folder("ppo_lag"))
    with atomic_folder(adapter) as aside:
        (aside / "adapter_config.json").write_text("{}")
    assert adapter in [finding.what for finding in verify(plan)]
    (adapter / "adapter_config.json").unlink()
    assert len(wrong(plan)) == 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("", "run.json is damaged"),
        ("[]", "run.json is damaged"),
        ("{}", "run.json is damaged, or was written by another Castor"),
        ('{"ledger": {"prompts": 6}}', "these are no terms of a ledger"),
        ('{"ledger": 3}', "these are no terms of a ledger"),
    ],
)
def test_damaged_terms_are_said_so(tmp_path, record, message):
    plan = make_run(tmp_path / "run", (*BEFORE_RLHF, "ppo_lag"))
    plan.files.stage("ppo_lag").run_record.write_text(record)
    (told,) = wrong(plan)
    assert message in told


def test_terms_without_prompts_are_none(tmp_path):
    plan = make_run(tmp_path / "run", (*BEFORE_RLHF, "ppo_lag"))
    record = plan.files.stage("ppo_lag").run_record
    write_json(record, {"ledger": read_json(record)["ledger"] | {"prompts": 0}})
    assert "these are no terms of a ledger" in wrong(plan)[0]


@pytest.mark.parametrize("text", [None, "{", '{"step": 1}\n', "\udcff"])
def test_a_damaged_ledger_is_said_so(tmp_path, text):
    plan = make_run(tmp_path / "run", (*BEFORE_RLHF, "ppo_lag"))
    path = plan.files.stage("ppo_lag").ledger
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    (told,) = wrong(plan)
    assert str(path) in told


def test_the_ledger_of_a_finished_run_has_all_of_its_steps(tmp_path):
    plan = make_run(tmp_path / "run", (*BEFORE_RLHF, "ppo_lag"), overrides=["rlhf.ppo_lag.steps=9"])
    assert wrong(plan) == [f"{plan.files.stage('ppo_lag').ledger} has {STEPS} steps, and ppo_lag took 9"]
