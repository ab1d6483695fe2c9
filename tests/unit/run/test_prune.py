"""What goes when room is made in a run's folder, and what stays."""

import pytest

from castor.io.checkpoint import MANIFEST
from castor.io.errors import CastorError
from castor.run.checkpoints import Checkpoints
from castor.run.prune import prune
from tests.run_folders import BEFORE_RLHF, add_checkpoint, make_run

TAG = "0123456789ab"


def removed(pruned, plan):
    return {str(each.folder.relative_to(plan.files.folder)): each.size for each in pruned.removed}


def test_checkpoints_that_the_config_keeps_stay(tmp_path):
    plan = make_run(tmp_path / "run", overrides=["rlhf.ppo_lag.checkpoint.keep_every=2"])
    for step in range(1, 6):
        add_checkpoint(plan, "ppo_lag", step)
    prune(plan, keep=1)
    assert plan.files.stage("ppo_lag").training.steps() == [2, 4, 5]


def test_one_that_is_not_named_yet_stays_and_one_that_is_not_whole_goes(tmp_path):
    plan = make_run(tmp_path / "run", ["model"])
    for step in (1, 2):
        add_checkpoint(plan, "sft", step)
    checkpoints = Checkpoints(plan.files.stage("sft").training)
    (checkpoints.files.checkpoint(1) / MANIFEST).unlink()
    checkpoints.stage(3).commit({})
    prune(plan, keep=1)
    assert checkpoints.files.steps() == [2, 3]
    assert checkpoints.newest().step == 2


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_finished_stages_and_killed_processes_left(tmp_path, dry_run):
    plan = make_run(tmp_path / "run", (*BEFORE_RLHF, "ppo_lag"))
    add_checkpoint(plan, "sft", 900)
    aside = plan.files.folder / f".reward.{TAG}.tmp"
    rows = plan.files.stage("ppo").stored_rows("ptx")
    nested = plan.files.stage("sft").training.folder / f".step-000001000.{TAG}.tmp"
    for folder in (aside, rows, nested):
        folder.mkdir()
        (folder / "weights").write_bytes(bytes(500))
    cost = plan.files.stage("cost").folder
    cost.rename(cost.with_name(f".cost.{TAG}.old"))
    before = sorted(tmp_path.rglob("*"))
    pruned = prune(plan, keep=1, dry_run=dry_run)
    sizes = removed(pruned, plan)
    assert pruned.back == [cost]
    assert sizes[aside.name] == sizes[rows.name] == 500
    assert sizes.keys() - {f"sft.training/{nested.name}"} == {aside.name, rows.name, "sft.training"}
    assert sum(sizes.values()) > 1500 + 1000
    if dry_run:
        assert sorted(tmp_path.rglob("*")) == before
    else:
        assert cost.is_dir()
        assert not any(folder.exists() for folder in (aside, rows, nested.parent))
        assert not prune(plan, keep=1).removed
    for name in ("sft", "reward", "ppo_lag"):
        assert plan.model_folder(name).is_dir()


def test_a_checkpoint_that_was_being_replaced_comes_back_before_older_ones_go(tmp_path):
    plan = make_run(tmp_path / "run")
    for step in (1, 2):
        newest = add_checkpoint(plan, "ppo_lag", step)
    newest.folder.rename(newest.folder.with_name(f".{newest.folder.name}.{TAG}.old"))
    assert prune(plan, keep=1).back == [newest.folder]
    assert plan.files.stage("ppo_lag").training.steps() == [2]


def test_nothing_goes_where_the_newest_checkpoint_is_gone(tmp_path):
    plan = make_run(tmp_path / "run")
    for step in (1, 2, 3):
        newest = add_checkpoint(plan, "ppo_lag", step)
    newest.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(CastorError, match="names the checkpoint of step 3"):
        prune(plan, keep=1)
    assert plan.files.stage("ppo_lag").training.steps() == [1, 2]
