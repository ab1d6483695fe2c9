"""`castor plan`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.cli.main import app
from castor.io.errors import CastorError

CONFIGS = Path(__file__).parents[3] / "configs"
DEMO, LARGE = CONFIGS / "demo.yaml", CONFIGS / "llama-8b" / "ppo_lag.yaml"


def told(*words):
    result = CliRunner().invoke(app, ["plan", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture
def cpu(tmp_path):
    file = tmp_path / "cpu.json"
    rates = {"flops": 2e10, "bandwidth": 1e10, "link": 1e9, "network": 1e9, "host_link": 1e9}
    file.write_text(json.dumps({"name": "CPU of a test", "memory_gib": 8, "cores": 2, "training": 0.8} | rates))
    return file


def test_a_plan_tells_memory_seconds_who_waits_and_what_is_faster():
    text = told(LARGE, "--gpu-type", "A100")
    for part in (
        "8 GPUs, 8 a node: A100 (--gpu-type).",
        "132 responses a step of 256 tokens in the mean (at most 512)",
    ):
        assert part in text
    for heading in ("Who waits for whom", "Memory: what one actor", "The fastest split found of each mode"):
        assert heading in text
    assert "apart, staleness 1" in text
    assert "in turns (colocate)" in text
    assert "rlhf.ppo_lag.rollout.max_staleness=1" in text
    assert max(map(len, text.splitlines())) <= 110


def test_json_has_the_figures_of_the_step_and_of_the_alternatives_whose_keys_give_the_same_step_again():
    small = ("--response-tokens", "100", "--json")
    run = json.loads(told(LARGE, *small))["ppo_lag"]
    assert (run["gpus"], run["device"], run["response_tokens"]) == (8, "H100", 100)
    assert sum(run["step"]["waited_s"].values()) == pytest.approx(run["step"]["seconds"])
    best = run["alternatives"][0]
    keys = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in best["keys"].items()]
    again = json.loads(told(LARGE, *keys, *small))["ppo_lag"]
    assert again["step"] == best["step"]


def test_what_does_not_fit_is_said_also_where_nothing_else_does():
    text = told(LARGE, "--gpu-type", "A10G", "--gpus", "4")
    assert "It does not fit: ppo_lag: " in text
    assert "No split of these GPUs fits their memory" in text


def test_a_run_on_cpus_is_planned_with_a_calibration(cpu):
    text = told(DEMO, "--calibration", cpu, "--run", "ppo")
    assert "CPU of a test" in text
    assert "response tokens/s." in text
    assert "ppo_lag" not in text
    assert "The fastest split" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([DEMO], "rlhf.ppo_lag computes on CPUs, whose speed only a measurement tells"),
        ([DEMO, "--run", "pp"], "has no RLHF run 'pp': it has ppo_lag, ppo"),
        ([LARGE, "--response-tokens", "600"], "--response-tokens 600 is over what rlhf.ppo_lag allows, 512"),
        ([LARGE, "--calibration", "nowhere.json"], "nowhere.json is no calibration"),
        ([LARGE, "--calibration", "x.json", "--gpu-type", "H100"], "leave --gpu-type and --cluster out"),
        ([CONFIGS / "preference_models.yaml"], "has no RLHF run to plan"),
    ],
    ids=["no speed of a CPU", "an unknown run", "too long", "no file", "two devices", "no run"],
)
def test_what_cannot_be_planned_is_said_in_a_sentence(words, said):
    with pytest.raises(CastorError, match=said):
        told(*words)


def test_a_calibration_of_a_cpu_is_not_taken_for_gpus(cpu):
    with pytest.raises(CastorError, match="is of a CPU, and the plan has GPUs"):
        told(LARGE, "--calibration", cpu)
