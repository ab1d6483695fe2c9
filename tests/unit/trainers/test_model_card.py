"""The cards of a run's models: written from what the stages left, and no part of what must not change."""

from dataclasses import asdict

from huggingface_hub import ModelCard

from castor.config.data import DataSource
from castor.data.rows.load import stream_preferences
from castor.data.rows.schemas import PreferenceRow
from castor.data.sources.change_marks import input_state
from castor.evaluation.metrics import policy_metrics
from castor.io.checkpoint import verify_folder
from castor.io.files import write_json
from castor.model_reference import CARD
from castor.reports.limits import Told
from tests.plans import run_of
from tests.run_folders import TERMS, make_run
from tests.unit.reports.test_report import responses
from trainers.model_card import add_comparison, write_model_card


def card_of(plan, stage):
    return ModelCard.load(plan.model_folder(stage) / CARD)


def test_the_card_of_a_supervised_stage(tmp_path):
    plan = make_run(tmp_path / "run", overrides=["template=pku"])
    run = run_of(plan, "reward")
    with run.rows.store([DataSource(limit=12)], PreferenceRow, stream_preferences) as rows:
        assert len(rows) == 12
    write_json(run.files.metrics, {"accuracy": 0.75, "training_samples": 10, "validation_samples": 2, "note": "x"})
    folder = plan.model_folder("reward")
    before = input_state(str(folder))
    write_model_card(plan, run)
    text = card_of(plan, "reward").text
    assert "| Castor's synthetic corpus | train | 12 |" in text
    assert "10 samples were trained on and 2 held out" in text
    assert "| accuracy | 0.75 |" in text
    assert "(`template: pku`)" in text
    verify_folder(folder)
    assert input_state(str(folder)) == before  # a run that starts from the folder is not run again


def test_the_card_of_a_stage_that_left_no_figures(tmp_path):
    plan = make_run(tmp_path / "run", ["model", "cost", "ppo_lag"])
    for stage in ("model", "cost", "ppo_lag"):
        write_model_card(plan, run_of(plan, stage))
        assert "## Figures" not in card_of(plan, stage).text


def test_the_card_of_a_policy_has_its_signals_its_last_step_and_the_comparison(tmp_path):
    plan = make_run(tmp_path / "run", ["model", "ppo_lag"])
    run = run_of(plan, "ppo_lag")
    step = {"step": 4, "weighted_reward": 1.5, "kl": 0.25, "mean_costs": {"harm": -0.5}, "multipliers": {"harm": 2.0}}
    write_json(run.files.run_record, {"ledger": asdict(TERMS), "steps": [{"step": 3}, step]})
    write_model_card(plan, run)
    policies = {name: policy_metrics(responses()) for name in plan.policies}
    limits = [Told(run, f"{run}, harm", "limit kept", "good", ["Asked: little."]) for run in ("ppo_lag", "ppo")]
    add_comparison(plan, policies, limits)
    text = card_of(plan, "ppo_lag").text
    for signal in plan.stage("ppo_lag").section.signals:
        assert f"- `{signal}`: " in text
    for figure in (
        "step | 4 |",
        "weighted reward | 1.5 |",
        "kl | 0.25 |",
        "mean cost harm | -0.5 |",
        "multiplier harm | 2 |",
    ):
        assert f"| {figure}" in text
    assert "PPO-Lag (this model)" in text
    assert "- **ppo_lag, harm: limit kept.** Asked: little." in text
    assert "ppo, harm" not in text
    assert not (plan.model_folder("sft") / CARD).exists()  # it has no card to add to
