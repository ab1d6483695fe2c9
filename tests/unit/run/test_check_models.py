"""What is wrong with models and functions of a config is said before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from castor.config.pipeline import Config
from castor.io.errors import CastorError
from castor.run.check import check
from castor.run.plan import make_plan


def folder(path: Path, file: str = "config.json", **settings: Any) -> str:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / file).write_text(json.dumps(settings))
    return str(path)


GROUPS = {
    "advantage": {"estimator": "group_relative"},
    "samples_per_prompt": 2,
    "multipliers": {"rule": "sgd_log"},
}


def finding(tmp_path: Path, **signals: Any) -> str:
    policy = {"model": folder(tmp_path / "policy")}
    objective = {"role": "objective", "model": folder(tmp_path / "r", "castor_score.json", score_type="reward")}
    run = {"steps": 1, "policy": policy, "signals": {"helpful": objective, **signals}, **GROUPS}
    return found_in(tmp_path, run)


def found_in(tmp_path: Path, run: dict[str, Any]) -> str:
    config = Config.model_validate({"run_dir": str(tmp_path / "run"), "rlhf": {"ppo": run}})
    try:
        check(make_plan(config))
    except CastorError as error:
        return str(error)
    return ""


def test_a_folder_with_another_head_is_named(tmp_path: Path) -> None:
    reward = folder(tmp_path / "other", "castor_score.json", score_type="reward")
    found = finding(tmp_path, harm={"role": "constraint", "model": reward, "threshold": 0.0})
    assert f"signals.harm.model: {reward} holds a reward model, but needed is a cost model: give another" in found
    assert "signals.helpful" not in found
    assert "policy.model" not in found


def test_categories_are_those_of_the_model_in_the_folder(tmp_path: Path) -> None:
    qa = folder(tmp_path / "qa", "castor_moderation.json", taxonomy="beavertails")
    harm = {"role": "constraint", "model": qa, "classifier": {"reduce": ["Animal Abuse"]}, "threshold": 0.0}
    found = finding(tmp_path, harm=harm)
    assert (
        f"signals.harm.classifier.reduce: {qa} has no category 'Animal Abuse'; the nearest one is 'animal_abuse'"
        in found
    )


def test_categories_are_those_of_the_stage_that_trains_the_model(tmp_path: Path) -> None:
    prompts = {"source": "synthetic"}
    judge = {"model": "stage:qa", "classifier": {"reduce": ["Insulting Behavior"]}}
    objective = {"role": "objective", "model": folder(tmp_path / "r", "castor_score.json", score_type="reward")}
    signals = {"helpful": objective, "harm": {"role": "constraint", **judge, "threshold": 0.0}}
    config = Config.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "model": {},
            "moderation": {"qa": {"model": "stage:model", "taxonomy": "beavertails", "data": prompts}},
            "rlhf": {"ppo": {"steps": 1, "policy": {"model": "stage:model"}, "signals": signals, **GROUPS}},
        }
    )
    with pytest.raises(CastorError) as caught:
        check(make_plan(config))
    assert str(caught.value) == (
        "rlhf.ppo.signals.harm.classifier.reduce: stage:qa has no category 'Insulting Behavior'; the nearest one is "
        "'hate_speech,offensive_language'"
    )


def test_a_function_is_imported_and_asked_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "signal_of_mine.py").write_text("def judge(prompts): return [0.0 for _ in prompts]\n")
    harm = {"role": "constraint", "function": "signal_of_mine:judge", "threshold": 0.0}
    found = finding(tmp_path, harm=harm)
    assert (
        "rlhf.ppo.signals.harm.function: signal_of_mine:judge(prompts) will be called with (prompts, responses): "
        "too many positional arguments" in found
    )


def test_layers_that_are_not_there_are_not_trained(tmp_path: Path) -> None:
    policy = folder(tmp_path / "policy", num_hidden_layers=2)
    judge = folder(tmp_path / "c", num_hidden_layers=4)
    (tmp_path / "c" / "castor_score.json").write_text('{"score_type": "reward"}')

    def found(critic: int | None, learner: int | None) -> str:
        signal = {"role": "objective", "model": judge, "critic": {"trained_layers": critic}}
        engine = {"trained_layers": learner}
        run = {"steps": 1, "policy": {"model": policy}, "signals": {"good": signal}, "learner": {"engine": engine}}
        return found_in(tmp_path, run)

    assert found(4, 1) == found(0, None) == ""
    assert f"rlhf.ppo, signal-good: trained_layers is 5, and {judge} has 4 layers: lower it" in found(5, None)
    assert "rlhf.ppo, learner: trained_layers 0 leaves nothing of a language model to train" in found(0, 0)
