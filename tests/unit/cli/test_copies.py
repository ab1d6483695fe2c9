"""`castor runs` on a URL: copies of checkpoints that were made by hand."""

from pathlib import Path

import pytest

from castor.config.load import load_config
from castor.run.remote import RemoteCheckpoints
from tests.run_folders import add_checkpoint, ledger, make_run

DEMO = Path("runs/demo")


@pytest.fixture(params=["file", "memory"])
def bucket(request, tmp_path):
    """A URL with copies of two runs: of ppo_lag steps 2 and 4, of ppo step 2; and of another run's ppo step 1."""
    url = f"file://{tmp_path}/bucket" if request.param == "file" else f"memory://{tmp_path.name}"
    plan = make_run(DEMO)
    upload(url, plan, "demo", "ppo_lag", 2, 4)
    upload(url, plan, "demo", "ppo", 2)
    upload(url, plan, "other", "round-2/ppo", 1)
    return url


def upload(url, plan, run, stage, *steps):
    for step in steps:
        made = add_checkpoint(plan, stage.rpartition("/")[2], step)
        RemoteCheckpoints(url, run, stage, plan.files.config).upload(made, keep=9, every=None)


def test_list_shows_every_run_and_stage(runs, bucket):
    code, lines = runs("list", bucket)
    assert code == 0
    assert [line.split()[:4] for line in lines[2:]] == [
        ["demo", "ppo", "step", "2"],
        ["demo", "ppo_lag", "step", "4"],
        ["other", "round-2/ppo", "step", "1"],
    ]
    assert runs("list", f"{bucket}/nothing/here") == (0, [f"there is no copy of a run at {bucket}/nothing/here"])


def test_show_tells_of_the_copies_of_one_run(runs, bucket):
    code, lines = runs("show", f"{bucket}/demo/")
    assert code == 0
    assert [line.split()[:2] for line in lines[2:-1]] == [["ppo", "2"], ["ppo_lag", "4"], ["ppo_lag", "2"]]
    assert ["the newest" in line for line in lines[2:-1]] == [True, True, False]
    assert lines[-1].endswith(f"castor runs resume {bucket}/demo/")


def test_verify_says_what_is_right_and_what_is_not(runs, bucket, tmp_path):
    assert runs("verify", f"{bucket}/demo") == (
        0,
        ["✓ ppo, step 2", "✓ ppo_lag, step 2", "✓ ppo_lag, step 4", "all 3 are right"],
    )
    lag = RemoteCheckpoints(bucket, "demo", "ppo_lag")
    with lag.filesystem.open(f"{lag.root}/step-000000002/weights", "w") as handle:
        handle.write("something else")
    lag.filesystem.rm(f"{lag.root}/step-000000004/manifest.json")
    plan = make_run(DEMO)
    wrong = add_checkpoint(plan, "ppo", 3, ledger(2))
    RemoteCheckpoints(bucket, "demo", "ppo").upload(wrong, keep=9, every=None)
    code, lines = runs("verify", f"{bucket}/demo")
    assert code == 1
    assert lines == [
        "✓ ppo, step 2",
        "✗ ppo, step 3: ledger.jsonl has 2 steps",
        "✗ ppo_lag, step 2: weights is missing or damaged",
        "✗ ppo_lag, step 4: it has no manifest.json: it was not copied to the end",
        "3 of 4 are not right",
    ]


def test_prune_removes_what_it_says(runs, bucket):
    lag = RemoteCheckpoints(bucket, "demo", "ppo_lag")
    for options, there in ((["--dry-run"], True), ([], False)):
        code, lines = runs("prune", f"{bucket}/demo", *options)
        assert code == 0
        assert lines[0].startswith(f"ppo_lag, step 2 {'would be ' if there else ''}removed, ")
        assert len(lines) == 2
        assert lag.filesystem.exists(f"{lag.root}/step-000000002") == there
    assert lag.newest() == 4
    assert runs("prune", f"{bucket}/demo") == (0, ["there is nothing to remove"])


def test_resume_takes_the_config_to_a_folder_of_its_own(runs, resumed, bucket):
    code, lines = runs("resume", f"{bucket}/demo")
    assert (code, lines[0]) == (2, "castor: there is a run at runs/demo already: use castor runs resume runs/demo")
    DEMO.rename("elsewhere")
    assert runs("resume", f"{bucket}/demo", "seed=3")[0] == 0
    config, options = resumed
    assert options == (False, False)
    assert config == load_config(Path("elsewhere/config.yaml")).model_copy(update={"run_dir": DEMO, "seed": 3})
