"""Every command that writes, given a place that takes nothing; and `~` in arguments."""

import json
import signal
import sys
from pathlib import Path

import pytest

from castor.cli.main import main

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
ROW = {"prompt": "p", "response": "a", "is_safe": True}


@pytest.fixture
def castor(monkeypatch, capfd):
    """Runs the command line in this process; gives its exit code and what it says on stderr."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def castor(*arguments):
        monkeypatch.setattr(sys, "argv", ["castor", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capfd.readouterr().err

    yield castor
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROW | {"prompt": f"p{i}", "is_safe": bool(i % 2)}) + "\n" for i in range(4)))
    return path


@pytest.mark.parametrize("blocked", ["file/x", "/proc/x"])
@pytest.mark.parametrize(
    "command",
    [
        ["pipeline", DEMO, "wandb.mode=disabled", "run_dir={place}"],
        ["sft", DEMO, "wandb.mode=disabled", "run_dir={place}"],
        ["evaluate", DEMO, "wandb.mode=disabled", "run_dir={place}"],
        ["assess", "models.cost=nowhere", "data={rows}", "out={place}"],
        ["data", "check", "{rows}", "--out", "{place}"],
        ["data", "stats", "{rows}", "--out", "{place}/page.html"],
        ["data", "stats", "{rows}", "--out", "page.html", "--json", "{place}/numbers.json"],
        ["data", "split", "{rows}", "--out", "{place}", "--shares", "0.5", "0.5"],
        ["export", "nowhere", "{place}/model", "--as", "castor"],
    ],
    ids=lambda command: "-".join(str(word) for word in command[:2] if word != DEMO),
)
def test_a_place_that_takes_nothing_is_said_in_one_sentence(tmp_path, monkeypatch, castor, rows, command, blocked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    code, said = castor(*(str(word).format(place=blocked, rows=rows) for word in command))
    assert (code, len(said.splitlines())) == (2, 1), said
    assert said.startswith(f"castor: cannot write {blocked}")
    assert (tmp_path / "file").read_text() == "mine"


def test_serve_says_that_it_cannot_write_its_log(tmp_path, castor):
    (tmp_path / "logs").write_text("mine")
    assert castor("serve", tmp_path) == (
        2, f"castor: cannot write {tmp_path / 'logs'}: {tmp_path / 'logs'} is a file; choose another place\n"
    )  # fmt: skip


def test_a_folder_may_be_called_run(tmp_path, monkeypatch, castor):
    monkeypatch.chdir(tmp_path)
    for more in ([], ["guard.mode=annotate"], ["run"], ["run", "guard.mode=annotate"]):
        assert "there is no run at run: give the folder" in castor("serve", "run", *more)[1]
    assert castor("serve", "run", "--help")[0] == 0


def test_a_tilde_is_the_home_folder_in_every_argument(tmp_path, monkeypatch, castor, rows):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert castor("data", "check", "~/rows.jsonl", "--out", "~/found")[0] == 0
    assert (tmp_path / "found" / "check.json").is_file()
    assert castor("data", "stats", "~/rows.jsonl", "--out", "~/page.html", "--json", "~/n.json")[0] == 0
    assert (tmp_path / "page.html").is_file()
    assert (tmp_path / "n.json").is_file()
    assert castor("data", "split", "~/rows.jsonl", "--out", "~/split", "--shares", "0.5", "0.5")[0] == 0
    assert (tmp_path / "split" / "train.jsonl").is_file()
    assert f"there is no run at {tmp_path / 'run'}" in castor("serve", "~/run")[1]
    (tmp_path / "model").mkdir()
    assert f"{tmp_path / 'model'} is the model itself" in castor("export", "~/model", "~/model", "--as", "castor")[1]
    (tmp_path / "run.yaml").write_text(DEMO.read_text(encoding="utf-8"), encoding="utf-8")
    assert "rlhf.nope" in castor("pipeline", "~/run.yaml", "rlhf.nope={}")[1]
    assert not (tmp_path / "~").exists()


def test_a_run_of_another_version_is_refused_and_left_as_it_is(castor, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "stages.json").write_text('{"sft": {"key": "k", "seconds": 1.0}}')
    (run / "config.yaml").write_text("seed: 7\n")
    (tmp_path / "c.yaml").write_text(f"run_dir: {run}\nsft: {{model: org/base, data: {{source: synthetic}}}}\n")
    code, told = castor("pipeline", tmp_path / "c.yaml")
    assert code == 2
    assert told.count("\n") == 1
    assert "was made by another version of Castor" in told
    assert (run / "config.yaml").read_text() == "seed: 7\n"
