"""Where a run is tracked, as config and environment say; that a kill loses nothing."""

import json
import os
import signal
import subprocess
import sys

import pytest
from wandb.proto import wandb_internal_pb2

from castor.config.pipeline import Config
from castor.config.trackers import MLflow, TensorBoard
from castor.config.wandb import WandB
from castor.io.errors import CastorError
from castor.run.files import RunFiles
from castor.run.trackers.mlflow import MLflowTracker
from castor.run.trackers.tensorboard import TensorBoardTracker
from castor.run.trackers.trackers import Trackers
from castor.run.trackers.wandb import WandBTracker, tracking_mode
from tests.conftest import ROOT

KEY = "0" * 40


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize(
    ("mode", "environment", "found"),
    [
        ("auto", {"WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_DISABLED": "true"}, "disabled"),
        ("auto", {"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
        ("disabled", {"WANDB_MODE": "nonsense"}, "disabled"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        ("offline", {"WANDB_DISABLED": "true"}, "offline"),
    ],
)
def test_the_environment_decides_where_the_config_does_not(monkeypatch, mode, environment, found, key):
    for name, value in (environment | ({"WANDB_API_KEY": key} if key else {})).items():
        monkeypatch.setenv(name, value)
    assert tracking_mode(WandB(mode=mode)) == found


@pytest.mark.parametrize(
    ("mode", "environment", "with_key", "without"),
    [
        ("auto", {}, "online", "offline"),
        ("auto", {"WANDB_DISABLED": "false"}, "online", "offline"),
        ("auto", {"WANDB_MODE": "online"}, "online", "WANDB_MODE is online, but no API key is configured"),
        ("online", {"WANDB_MODE": "disabled"}, "online", "wandb.mode is online, but no API key is configured"),
        ("online", {"WANDB_DISABLED": "true"}, "online", "wandb.mode is online, but no API key is configured"),
    ],
)
def test_online_needs_a_key(monkeypatch, mode, environment, with_key, without):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if " " in without:
        with pytest.raises(CastorError, match=without):
            tracking_mode(WandB(mode=mode))
    else:
        assert tracking_mode(WandB(mode=mode)) == without
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert tracking_mode(WandB(mode=mode)) == with_key


def test_a_wandb_without_its_core_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("wandb.util.__file__", str(tmp_path / "util.py"))
    with pytest.raises(CastorError, match=r"wandb cannot run here: .*wandb-core.* set wandb\.mode=disabled"):
        tracking_mode(WandB())


@pytest.mark.parametrize("mode", ["auto", "offline"])
def test_a_mode_that_wandb_does_not_know_is_said(monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(CastorError, match="WANDB_MODE is 'nonsense': set it to one of online, offline, disabled"):
        tracking_mode(WandB(mode=mode))


def tracker_in(folder, **options):
    return WandBTracker(WandB(**options), folder / "wandb", "demo", {})


def test_a_disabled_run_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    trackers = Trackers([tracker_in(tmp_path)])
    trackers.declare()
    trackers.log("sft", 1, {"loss": 1.0})
    trackers.finish()
    assert not (tmp_path / "wandb").exists()


def test_a_run_that_goes_on_is_tracked_as_the_same_one(tmp_path):
    def identities():
        tracker = tracker_in(tmp_path, mode="offline")
        assert tracker.open()
        tracker.finish()
        return {path.name.rpartition("-")[2] for path in (tmp_path / "wandb" / "wandb").glob("offline-run-*")}

    (first,) = identities()
    assert identities() == {first}
    tracker_in(tmp_path, mode="offline").start_over()
    assert len(identities()) == 2


def test_project_and_group_are_the_environments_else_ours(monkeypatch, tmp_path):
    def opened(**options):
        tracker = tracker_in(tmp_path, mode="offline", **options)
        tracker.open()
        found = tracker._run.project, tracker._run.group
        tracker.finish()
        return found

    for name in ("WANDB_PROJECT", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    assert opened() == ("castor", "demo")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_RUN_GROUP", "sweep")
    assert opened() == ("theirs", "sweep")
    assert opened(project="mine") == ("mine", "sweep")


def test_samples_are_cut_and_can_be_left_out(tmp_path):
    def tables(samples):
        folder = tmp_path / f"wandb{samples}"
        tracker = tracker_in(folder, mode="offline", samples=samples)
        tracker.open()
        tracker.samples("evaluate/sft", ("prompt", "cost"), [["x" * 1000, 1.5], ["second", 2.5]])
        tracker.finish()
        return [
            json.loads(path.read_text())
            for path in folder.glob("wandb/wandb/offline-run-*/files/media/table/**/*.json")
        ]

    (table,) = tables(1)
    assert table["columns"] == ["prompt", "cost"]
    assert table["data"] == [["x" * 500, 1.5]]
    assert tables(0) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from castor.config.wandb import WandB
from castor.run.trackers.wandb import WandBTracker

tracker = WandBTracker(WandB(mode="offline"), Path(sys.argv[1]) / "wandb", "demo", {})
tracker.open()
for step in range(1, 8):
    tracker.log("ppo", step, {"reward": step / 2})
tracker.samples("evaluate/ppo", ("prompt", "cost"), [["a", 1.5]])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_nothing(tmp_path):
    alone = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # not this process's own
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, env=alone, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    journal = tmp_path / "wandb" / "unfinished.jsonl"
    with journal.open("a") as file:
        file.write('{"series": "ppo", "st')  # a line that was being written
    identity = (tmp_path / "wandb" / "run_id").read_text()
    tracker = tracker_in(tmp_path, mode="offline")
    tracker.open()
    tracker.log("ppo", 8, {"reward": 4.0})
    tracker.finish()
    assert (tmp_path / "wandb" / "run_id").read_text() == identity
    assert not journal.exists()
    files = list((tmp_path / "wandb" / "wandb").glob("offline-run-*/*.wandb"))
    assert {file.stem for file in files} == {f"run-{identity}"}
    points = {point for file in files for point in history(file.read_bytes())}
    assert points == {(step, step / 2) for step in range(1, 9)}
    assert len(list((tmp_path / "wandb" / "wandb").glob("offline-run-*/files/media/table/**/*.json"))) >= 1


def history(data):
    """Step and reward of every point in a file of wandb: LevelDB's log format, records of protobuf."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole = (b"" if kind in (1, 2) else whole) + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if "ppo/reward" in values:
                yield int(values["ppo/step"]), float(values["ppo/reward"])


def test_tensorboard_has_the_figures_at_once_and_goes_on(tmp_path):
    for step in (1, 2):
        tracker = TensorBoardTracker(TensorBoard(samples=1), tmp_path)
        tracker.open()
        tracker.log("ppo", step, {"reward": step / 2})
        tracker.samples("evaluate/ppo", ("prompt", "cost"), [["a", 1.5], ["b", 2.5]])
        assert len(list(scalars(tmp_path))) == step  # before anything is closed
        tracker.finish()
    assert sorted(scalars(tmp_path)) == [("ppo/reward", 1, 0.5), ("ppo/reward", 2, 1.0)]
    tracker.start_over()
    assert not list(tmp_path.glob("*"))


def scalars(folder):
    """Tag, step and value of every scalar in event files: length (8 bytes), checksum (4), protobuf, checksum (4)."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    for file in folder.glob("events.*"):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    yield value.tag, event.step, value.simple_value


@pytest.mark.parametrize(
    ("module", "tracker", "message"),
    [
        (
            "tensorboardX.event_file_writer",
            lambda folder: TensorBoardTracker(TensorBoard(), folder),
            "pip install tensorboardX",
        ),
        ("mlflow.tracking", lambda folder: MLflowTracker(MLflow(), folder, "demo"), "pip install mlflow"),
    ],
    ids=["tensorboard", "mlflow"],
)
def test_a_package_that_is_missing_is_said(monkeypatch, tmp_path, module, tracker, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CastorError, match=message):
        tracker(tmp_path).open()


def test_a_config_asks_for_trackers(tmp_path):
    def asked(**options):
        config = Config.model_validate({"run_dir": tmp_path / "run", **options})
        return [type(each) for each in Trackers.of(config, RunFiles(config.run_dir))._asked]

    assert asked() == [WandBTracker]
    assert asked(tensorboard={}, mlflow={}) == [WandBTracker, TensorBoardTracker, MLflowTracker]
