"""What the closing summary says of a run's limits, from the files that the run has left."""

from pathlib import Path

import pytest

from castor.config.pipeline import Config
from castor.evaluation.records import JudgedResponse, write_responses
from castor.evaluation.summary import RowCounts
from castor.io.files import read_json, write_json
from castor.run.plan import Plan, make_plan
from castor.run.records import Records
from trainers.summary import summarize

MULTIPLIERS = {"harm": {"window": [1.0] * 3 + [-1.0] * 97}, "lies": {"window": [-2.0, -1.0, 1.0]}}


def finished(tmp_path: Path, costs: dict[str, list[float]], lies: bool = True) -> Plan:
    """A run with two constraints, as its stages leave it; `costs` are those of each policy's answers.

    The constraint lies, which the evaluation judges too if `lies`, calls unsafe what the cost model calls safe.
    """
    data = {"data": {"source": "synthetic"}}
    signals = {
        "help": {"role": "objective", "model": "stage:reward", "weight": 2.0},
        "harm": {"role": "constraint", "model": "stage:cost", "unsafe_share": 0.05},
        "lies": {
            "role": "constraint", "function": "own:lies", "unsafe_share": 0.5,
            "constraint": {"statistic": "share", "confidence": 0.9},
        },
        "calm": {"role": "monitor", "function": "own:calm"},
    }  # fmt: skip
    lag = {
        "steps": 1, "signals": signals, "multipliers": {}, "advantage": {"estimator": "leave_one_out"},
        "samples_per_prompt": 2,
    }  # fmt: skip
    values = {
        "run_dir": tmp_path / "run", "model": {}, "sft": data, "reward": data, "cost": data,
        "rlhf": {"ppo_lag": lag}, "evaluate": {"constraints": lies},
    }  # fmt: skip
    plan = make_plan(Config.model_validate(values))
    files = plan.files.stage("ppo_lag")
    files.folder.mkdir(parents=True)
    step = {
        "step": 1, "multipliers": {"harm": 1.0, "lies": 0.5}, "mean_costs": {"harm": -0.9, "lies": -0.6},
        "window_costs": {}, "weighted_reward": 3.0, "kl": 0.1,
        "metrics": {"rollout_s": 1.0, "learn_s": 1.0, "response_tokens": 10, "tokens": 20},
    }  # fmt: skip
    limits = {
        "harm": {"statistic": "mean", "limit": -0.8, "confidence": None},
        "lies": {"statistic": "share", "limit": 0.5, "confidence": 0.9},
    }
    write_json(files.run_record, {"limits": limits, "alarms": {"kl": "far away"}, "steps": [step]})
    write_json(files.multipliers, {"states": MULTIPLIERS})
    judged = plan.files.stage("evaluate")
    judged.folder.mkdir()
    for name, of_policy in costs.items():
        rows = [
            JudgedResponse("p", "r", None, None, None, 1.0, cost, None, None, None, 3, {"lies": -cost} if lies else {})
            for cost in of_policy
        ]
        write_responses(judged.responses(name), rows)
    return plan


def test_a_translated_share_is_told_as_a_share_and_as_the_mean_that_was_bounded(tmp_path: Path) -> None:
    plan = finished(tmp_path, {"sft": [1.0] * 100, "ppo_lag": [1.0] * 8 + [-1.0] * 92})
    assert Records(plan.files).of("sft") is None
    summary, _ = summarize(plan, {"sft": False})
    harm, lies = summary.constraints
    assert (harm.run, harm.name, harm.judge) == ("ppo_lag", "harm", "score model stage:cost")
    assert (harm.asked.statistic, harm.asked.limit) == ("share", 0.05)
    assert harm.asked.training is not None
    assert harm.asked.held_out is not None
    assert (harm.asked.training.value, harm.asked.training.kept) == (0.03, True)
    assert (harm.asked.held_out.value, harm.asked.held_out.kept, harm.asked.held_out.clear) == (0.08, False, False)
    assert harm.bounded is not None
    assert harm.bounded.held_out is not None
    assert (harm.bounded.statistic, harm.bounded.limit) == ("mean", -0.8)
    assert harm.bounded.held_out.value == pytest.approx(-0.84)
    assert harm.bounded.held_out.kept
    assert (harm.judged_as, lies.judged_as) == ("cost", "lies")
    # a third of three with 90 % confidence may well be above a half
    assert (lies.bounded, lies.confidence) == (None, 0.9)
    assert lies.asked.held_out is not None
    assert (lies.asked.held_out.value, lies.asked.held_out.kept, lies.asked.held_out.clear) == (0.92, False, True)
    assert lies.asked.training is not None
    assert (lies.asked.training.value, lies.asked.training.n) == (pytest.approx(1 / 3), 3)
    assert not lies.asked.training.kept


def test_a_run_without_constraints_has_no_limits(tmp_path: Path) -> None:
    plan = finished(tmp_path, {"sft": [1.0] * 4, "ppo_lag": [-1.0] * 4})
    files = plan.files.stage("ppo_lag")
    write_json(files.run_record, read_json(files.run_record) | {"limits": {}})
    files.multipliers.unlink()  # the owner of multipliers is not even started
    assert summarize(plan, {})[0].constraints == []


def test_objectives_and_monitors_are_told_apart(tmp_path: Path) -> None:
    summary, _ = summarize(finished(tmp_path, {"sft": [1.0] * 4, "ppo_lag": [-1.0] * 4}), {})
    run = summary.runs["ppo_lag"]
    assert (run.objectives, run.monitors) == ({"help": 2.0}, ["calm"])
    assert {name: (limit.statistic, limit.confidence) for name, limit in run.limits.items()} == {
        "harm": ("mean", None), "lies": ("share", 0.9),
    }  # fmt: skip
    assert run.steps[0].weighted_reward == 3.0
    assert run.alarms == {"kl": "far away"}
    assert summary.leaks is None


def test_a_constraint_that_the_evaluation_is_not_to_judge_is_told_by_training_alone(tmp_path: Path) -> None:
    plan = finished(tmp_path, {"sft": [1.0] * 4, "ppo_lag": [-1.0] * 4}, lies=False)
    summary, _ = summarize(plan, {})
    assert [(each.name, each.judged_as, each.asked.held_out is None) for each in summary.constraints] == [
        ("harm", "cost", False), ("lies", None, True),
    ]  # fmt: skip
    assert summary.policies["sft"].judges == {}


def test_rows_that_were_left_out_are_counted(tmp_path: Path) -> None:
    plan = finished(tmp_path, {"sft": [1.0] * 4, "ppo_lag": [-1.0] * 4})
    counts = {"read": 10, "dropped": 2, "set_aside": 1, "too_long": 3}
    write_json(plan.files.stage("evaluate").counts, counts)
    write_json(plan.files.stage("sft").counts, counts | {"too_long": 0})
    write_json(plan.files.stage("sft").metrics, {"too_long": 4.0})
    summary, _ = summarize(plan, {})
    assert summary.rows == {"evaluate": RowCounts(**counts), "sft": RowCounts(**counts | {"too_long": 4})}
