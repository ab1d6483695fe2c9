"""Where a run lies."""

from pathlib import Path

from castor.run.files import RUNS, RunFiles


def test_a_relative_run_lies_in_the_working_directory_or_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.delenv(RUNS, raising=False)
    monkeypatch.chdir(tmp_path)
    given = Path("runs/demo")
    assert RunFiles(given).folder == tmp_path / "runs" / "demo"
    shared = tmp_path / "shared"
    monkeypatch.setenv(RUNS, str(shared))
    files = RunFiles(given)
    assert files.folder == shared / "runs" / "demo"
    assert files.stage("ppo_lag").policy == shared / "runs" / "demo" / "ppo_lag" / "policy"
    assert files.shown(files.log) == given / "logs" / "castor.log"
    assert RunFiles(tmp_path / "elsewhere").folder == tmp_path / "elsewhere"


def test_copies_of_checkpoints_under_other_names_are_none(tmp_path):
    training = RunFiles(tmp_path).stage("sft").training
    for name in ("step-000000012", "step-000000012.bak", "step-last"):
        (training.folder / name).mkdir(parents=True)
    assert training.steps() == [12]
