"""Which stages are run again, and what a finished run imports. No stage is carried out here."""

import os
import subprocess
import sys

import fsspec
import pytest

from castor.config.pipeline import Config
from castor.data.sources.change_marks import input_state
from castor.io.files import write_json, write_jsonl
from castor.run.plan import make_plan
from castor.run.records import FORMAT
from tests.conftest import ROOT
from tests.plans import Lines
from trainers.pipeline import Pipeline

ROW = {"prompt": "p", "response": "r"}


def plan_of(tmp_path, source, **sections):
    values = {"sft": {"model": str(tmp_path / "base"), "data": {"source": source}}, **sections}
    return make_plan(Config.model_validate({"run_dir": str(tmp_path / "run"), **values}))


def keys(plan):
    """As a new run of the same config would find them."""
    again = make_plan(plan.config)
    return {name: again.key(stage) for name, stage in again.stages.items()}


def changed(plan, change):
    """Which keys differ after `change`."""
    before = keys(plan)
    assert keys(plan) == before
    change()
    return {name for name, key in keys(plan).items() if key != before[name]}


@pytest.mark.parametrize("source", ["rows.jsonl", "saved", "memory://castor/rows.jsonl", "own_rows:rows", "base"])
def test_a_stage_is_run_again_when_its_inputs_change(source, tmp_path, monkeypatch):
    """Files, folders, URLs, the code of own functions, and the model it starts from; and so the stages after it."""
    monkeypatch.chdir(tmp_path)
    files = {"saved": tmp_path / "saved" / "data" / "x.arrow", "base": tmp_path / "base" / "config.json"}
    files |= {"rows.jsonl": tmp_path / "rows.jsonl", "own_rows:rows": tmp_path / "own_rows.py"}
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")

    def write(text):
        if source.startswith("memory"):
            fsspec.filesystem("memory").pipe("/castor/rows.jsonl", text.encode())
        else:
            files[source].write_text(text)

    write("x = 1")
    reward = {"model": "stage:sft", "data": {"source": "synthetic"}}
    cost = {"model": "org/other", "data": {"source": "synthetic"}}
    plan = plan_of(tmp_path, "synthetic" if source == "base" else source, reward=reward, cost=cost)
    assert changed(plan, lambda: None) == set()
    assert changed(plan, lambda: write("x = 1 # more")) == {"sft", "reward"}


def test_what_cannot_be_looked_at_has_no_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("synthetic", "stage:collect", "org/set", "nosuch:rows", "memory://castor/none.jsonl", "x://y.jsonl"):
        assert input_state(name) is None, name


def test_a_function_is_known_by_the_text_of_its_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows_of_mine.py").write_text("def rows(source): return []")
    first = input_state("rows_of_mine:rows")
    assert first is not None
    assert "rows_of_mine" not in sys.modules
    os.utime(tmp_path / "rows_of_mine.py", (1, 1))
    assert input_state("rows_of_mine:rows") == first


def test_a_finished_run_imports_nothing_heavy(tmp_path):
    """Every stage is reused, so neither torch nor Ray nor vLLM is worth its seconds."""
    write_jsonl(tmp_path / "rows.jsonl", [ROW])
    (tmp_path / "base").mkdir()
    (tmp_path / "run" / "sft").mkdir(parents=True)
    plan = plan_of(tmp_path, str(tmp_path / "rows.jsonl"))
    records = {name: {"key": key, "seconds": 1.0} for name, key in keys(plan).items()}
    write_json(tmp_path / "run" / "sft" / "manifest.json", {})
    write_json(tmp_path / "run" / "stages.json", {"format": FORMAT, "stages": records})
    screen = Lines()
    Pipeline(plan, screen, None, lambda engines: pytest.fail("Ray was started")).run()
    assert "finished before, unchanged" in screen.lines[0]
    (tmp_path / "c.yaml").write_text(
        f"run_dir: {tmp_path / 'run'}\nwandb: {{mode: disabled}}\nsft:\n  model: {tmp_path / 'base'}\n"
        f"  data: {{source: {tmp_path / 'rows.jsonl'}}}\n"
    )
    program = (
        "import sys; sys.argv = ['castor', 'pipeline', sys.argv[1]]\n"
        "from castor.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('heavy:', [name for name in ('torch', 'transformers', 'ray', 'vllm') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "c.yaml")],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished before, unchanged" in done.stdout
    assert "heavy: []" in done.stdout
