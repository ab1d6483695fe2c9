"""`castor runs`, on folders of runs that were made by hand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from castor.config.load import load_config
from castor.run.checkpoints import Checkpoints
from castor.run.files import RUNS
from castor.run.lock import exclusive
from castor.run.records import Records
from tests.conftest import ROOT
from tests.run_folders import BEFORE_RLHF, STEPS, add_checkpoint, make_run

DEMO = Path("runs/demo")
FINISHED = (*BEFORE_RLHF, "ppo_lag", "ppo", "evaluate")


def row(lines, name):
    (found,) = (line for line in lines if line.startswith(name))
    return found


def test_list_shows_every_run_and_leaves_out_what_is_none(runs):
    add_checkpoint(make_run(DEMO), "ppo_lag", 2)
    add_checkpoint(make_run(Path("runs/tuned"), ["model"]), "sft", 300)
    make_run(Path("runs/done"), FINISHED)
    make_run(Path("runs/new"), ())
    Path("runs/none").mkdir()
    Path("runs/file").touch()
    code, lines = runs("list")
    assert code == 0
    assert row(lines, "demo").startswith(f"demo 5 of 8 ppo_lag: step 2 of {STEPS} 1.")
    assert row(lines, "tuned").startswith("tuned 1 of 8 sft: step 300 of 900 1.")
    assert row(lines, "done").startswith("done 8 of 8 finished 20")
    assert row(lines, "new").startswith("new 0 of 8 model: not begun 20")
    assert not any(line.startswith(("none", "file")) for line in lines)


def test_list_shows_who_is_at_work(runs):
    plan = make_run(DEMO)
    with exclusive(plan.files):
        code, lines = runs("list", "runs")
    assert code == 0
    assert row(lines, "demo").startswith(f"demo 5 of 8 ppo_lag: not begun process {os.getpid()} 20")
    assert "process" not in row(runs("list")[1], "demo")


def test_list_goes_on_past_runs_that_it_cannot_read(runs):
    make_run(DEMO)
    make_run(Path("runs/[bold]")).files.config.write_text("nope: 1\nneither: 2\n")
    make_run(Path("runs/broken")).files.records.write_text("{")
    make_run(Path("runs/older")).files.records.write_text('{"sft": {}}')
    make_run(Path("runs/bare")).files.config.unlink()
    shutil.rmtree(add_checkpoint(make_run(Path("runs/gone")), "ppo_lag", 2).folder)
    code, lines = runs("list")
    assert code == 0
    assert row(lines, "demo").startswith("demo 5 of 8")
    for name, reason in {
        "[bold]": "unknown key 'nope'",
        "broken": "stages.json is damaged",
        "older": "another version of Castor",
        "bare": "it has no config.yaml",
        "gone": "names the checkpoint of step 2",
    }.items():
        assert row(lines, name) == f"{name} cannot be read"
        assert reason in row(lines, f"runs/{name} cannot be read: ")


def test_runs_lie_where_the_environment_says(runs, monkeypatch, tmp_path):
    monkeypatch.setenv(RUNS, str(tmp_path / "shared"))
    make_run(DEMO)
    assert (tmp_path / "shared" / "runs" / "demo" / "config.yaml").is_file()
    assert row(runs("list")[1], "demo")
    assert runs("show", DEMO)[0] == 0


def test_a_folder_without_runs_says_so(runs):
    Path("runs").mkdir()
    assert runs("list") == (0, ["there is no run in runs"])


def test_show_tells_of_stages_and_checkpoints_and_how_to_go_on(runs):
    plan = make_run(DEMO)
    for step in (1, 2):
        add_checkpoint(plan, "ppo_lag", step)
    plan.files.stage("ppo").training.folder.mkdir()
    code, lines = runs("show", DEMO)
    assert code == 0
    assert row(lines, "sft") == "sft finished 0"
    first, second, third = (line for line in lines if line.startswith("ppo_lag"))
    assert first == f"ppo_lag step 2 of {STEPS}"
    assert second.startswith("ppo_lag 2 1.")
    assert second.endswith("the newest")
    assert third.startswith("ppo_lag 1 1.")
    assert not third.endswith("the newest")
    assert row(lines, "ppo begun") == "ppo begun, no checkpoint"
    assert row(lines, "evaluate") == "evaluate not begun"
    assert lines[-1] == "to go on: castor runs resume runs/demo"
    with exclusive(plan.files):
        assert runs("show", DEMO)[1][-1] == f"a castor (process {os.getpid()}) is at work in it"


def test_show_of_a_finished_run(runs):
    make_run(DEMO, FINISHED)
    assert runs("show", DEMO)[1][-1] == "every stage is finished"


def test_verify_says_all_that_is_right_and_all_that_is_not(runs):
    plan = make_run(DEMO, (*BEFORE_RLHF, "ppo_lag"))
    add_checkpoint(plan, "ppo", 2)
    code, lines = runs("verify", DEMO)
    right = ["model", "sft", "reward", "cost", "ppo_lag/policy", "ppo_lag/ledger.jsonl"]
    right += ["ppo.training/step-000000002", "ppo.training/step-000000002/ledger.jsonl"]
    assert (code, lines) == (0, [*(f"✓ runs/demo/{name}" for name in right), "all 8 are right"])

    (plan.model_folder("sft") / "config.json").write_text("[]")
    ledger = plan.files.stage("ppo_lag").ledger
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-1]))
    code, lines = runs("verify", DEMO)
    assert code == 1
    assert [line for line in lines if line.startswith("✗")] == [
        f"✗ {plan.model_folder('sft')}/config.json is missing or damaged: run the stage that makes it again with "
        "--fresh",
        f"✗ {ledger} has {STEPS - 1} steps, and ppo_lag took {STEPS}",
    ]
    assert lines[-1] == "2 of 8 are not right"


def test_prune_removes_what_it_says(runs):
    plan = make_run(DEMO)
    for step in (1, 2, 3):
        add_checkpoint(plan, "ppo_lag", step)
    checkpoints = Checkpoints(plan.files.stage("ppo_lag").training)
    code, lines = runs("prune", DEMO, "--keep", 2, "--dry-run")
    assert code == 0
    assert lines[0].startswith("runs/demo/ppo_lag.training/step-000000001 would be removed, 1.")
    assert lines[0].endswith("kB: an older checkpoint")
    assert lines[1].endswith("kB would be free now")
    assert len(checkpoints.all()) == 3
    assert len(runs("prune", DEMO)[1]) == 3
    assert [each.step for each in checkpoints.all()] == [3]
    assert runs("prune", DEMO) == (0, ["there is nothing to remove"])
    assert runs("verify", DEMO)[0] == 0


def test_prune_waits_for_nobody(runs):
    plan = make_run(DEMO)
    for step in (1, 2):
        add_checkpoint(plan, "ppo_lag", step)
    with exclusive(plan.files):
        code, lines = runs("prune", DEMO)
    assert code == 2
    assert lines[0].startswith(f"castor: another castor (process {os.getpid()}) is at work in runs/demo")
    assert len(plan.files.stage("ppo_lag").training.checkpoints()) == 2


def test_resume_goes_on_in_the_folder_it_is_given(runs, resumed):
    plan = make_run(DEMO)
    DEMO.rename("moved")
    assert runs("resume", "moved", "seed=3", "--accept-changes")[0] == 0
    config, options = resumed
    assert config == plan.config.model_copy(update={"run_dir": Path("moved"), "seed": 3})
    assert options == (False, True)


def test_resume_of_a_finished_run_says_so(runs):
    absent = [f"{field}=null" for field in ("collect", "reward", "cost", "rlhf", "evaluate")]
    plan = make_run(DEMO, ("model", "sft"), [*absent, "wandb.mode=disabled"])
    for stage in plan.stages.values():
        with Records(plan.files).recorded(stage.name, plan.key(stage)):
            """It was finished with these inputs."""
    DEMO.rename("moved")
    code, lines = runs("resume", "moved")
    assert code == 0
    assert lines[1:] == ["✓ model finished before, unchanged", "✓ sft finished before, unchanged"]
    assert load_config(Path("moved/config.yaml")).run_dir == Path("moved")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["list", "nowhere"], "nowhere cannot be listed (No such file or directory)"),
        (["list", DEMO], "runs/demo is a run itself"),
        (["list", "nowhere://bucket/runs"], "nowhere://bucket/runs cannot be opened: Protocol not known: nowhere"),
        *(
            ([name, place], message)
            for name in ("show", "verify", "resume", "prune")
            for place, message in {
                "nowhere": "there is no run at nowhere",
                "runs": "runs is no run, it has no config.yaml",
                "memory://bucket/run": "there is no copy of a run at memory://bucket/run",
                "runs/damaged": "stages.json is damaged",
            }.items()
        ),
        (["resume", DEMO, "run_dir=other"], "a run is resumed in its own folder"),
        (["resume", DEMO, "nope=1"], "unknown key 'nope'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_sentence(runs, command, message):
    make_run(DEMO, ())
    make_run(Path("runs/damaged")).files.records.write_text("[]")
    code, lines = runs(*command)
    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith("castor: ")
    assert message in lines[0]


def test_looking_imports_nothing_heavy():
    add_checkpoint(make_run(DEMO), "ppo_lag", 2)
    program = (
        "import sys\n"
        "from castor.cli.main import main\n"
        "for command in (['list'], *([name, 'runs/demo'] for name in ('show', 'verify', 'prune'))):\n"
        "    sys.argv = ['castor', 'runs', *command]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "print('heavy:', [name for name in ('torch', 'transformers', 'ray', 'vllm') if name in sys.modules])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "heavy: []" in done.stdout
