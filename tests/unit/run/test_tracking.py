"""Where a run is tracked: the config's own mode, else what the environment says."""

import json

import pytest

from castor.config.wandb import WandB
from castor.io.errors import CastorError
from castor.run.tracking import Tracker, tracking_mode

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


@pytest.mark.parametrize("mode", ["auto", "offline"])
def test_a_mode_that_wandb_does_not_know_is_said(monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(CastorError, match="WANDB_MODE is 'nonsense': set it to one of online, offline, disabled"):
        tracking_mode(WandB(mode=mode))


def test_a_disabled_run_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = Tracker(WandB(), tmp_path / "wandb", "run", {})
    tracker.declare("sft")
    tracker.log("sft", 1, {"loss": 1.0})
    tracker.finish()
    assert not (tmp_path / "wandb").exists()


def test_a_run_that_goes_on_is_tracked_as_the_same_one(tmp_path):
    def identities():
        tracker = Tracker(WandB(mode="offline"), tmp_path / "wandb", "demo", {})
        tracker.declare("ppo")
        tracker.finish()
        return {path.name.rpartition("-")[2] for path in (tmp_path / "wandb" / "wandb").glob("offline-run-*")}

    (first,) = identities()
    assert identities() == {first}
    Tracker(WandB(mode="offline"), tmp_path / "wandb", "demo", {}).start_over()
    assert len(identities()) == 2


def test_the_project_is_the_configs_else_the_environments_else_ours(monkeypatch, tmp_path):
    def project(**options):
        tracker = Tracker(WandB(mode="offline", **options), tmp_path / "wandb", "demo", {})
        tracker.declare("sft")
        found = tracker._run.project
        tracker.finish()
        return found

    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    assert project() == "castor"
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert project() == "theirs"
    assert project(project="mine") == "mine"


def test_samples_are_cut_and_can_be_left_out(tmp_path):
    def tables(samples):
        folder = tmp_path / f"wandb{samples}"
        tracker = Tracker(WandB(mode="offline", samples=samples), folder, "demo", {})
        tracker.declare("evaluate")
        tracker.samples("evaluate/sft", ("prompt", "cost"), [["x" * 1000, 1.5], ["second", 2.5]])
        tracker.finish()
        return [json.loads(path.read_text()) for path in folder.glob("wandb/offline-run-*/files/media/table/**/*.json")]

    (table,) = tables(1)
    assert table["columns"] == ["prompt", "cost"]
    assert table["data"] == [["x" * 500, 1.5]]
    assert tables(0) == []
