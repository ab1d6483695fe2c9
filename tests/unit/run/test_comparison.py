"""The closing comparison: by whom the policies are judged, and in whose place."""

import pytest
from pydantic import ValidationError

from castor.config.evaluate import Evaluate
from castor.config.signal import Signal
from castor.dry_run.placement import placement
from castor.run.comparison import policy_of
from tests.plans import plan_of

DATA = {"data": {"source": "synthetic"}}
HARM = {"role": "constraint", "model": "stage:cost", "threshold": 0.0}
LIES = {"role": "constraint", "function": "json:dumps", "threshold": 0.0}
FREE = {"advantage": {"estimator": "leave_one_out"}, "samples_per_prompt": 2, "multipliers": {}, "steps": 1}
SMALL = {"resources": {"gpus": 1}, "rollout": {"resources": {"gpus": 1}}}


def plan(evaluate, **runs):
    signals = {"help": {"role": "objective", "model": "stage:reward"}}
    rlhf = {name: {**FREE, "signals": signals | constraints} for name, constraints in runs.items()}
    return plan_of({"model": {}, "sft": DATA, "reward": DATA, "cost": DATA, "rlhf": rlhf, "evaluate": evaluate})


def judges(evaluate, **runs):
    return {name: judge.source for name, judge in plan(evaluate, **runs).stage("evaluate").section.judges.items()}


def test_a_constraint_is_judged_by_its_own_judge_unless_another_is_that_one():
    assert judges({}, lag={"harm": HARM}) == {}  # evaluate.cost is its judge
    assert judges({}, lag={"harm": HARM, "lies": LIES}) == {"lies": "function json:dumps"}
    assert judges({"constraints": False}, lag={"lies": LIES}) == {}
    assert judges({"cost": None}, lag={"harm": HARM}) == {"harm": "score model stage:cost"}
    own = {"truth": {"measures": "cost", "function": "json:dumps"}}
    assert judges({"judges": own}, lag={"lies": LIES}) == {"truth": "function json:dumps"}
    as_reward = {"lies": {"measures": "reward", "function": "json:dumps"}}
    assert list(judges({"judges": as_reward}, lag={"lies": LIES})) == ["lies", "lag/lies"]


def test_constraints_of_one_name_with_different_judges_are_told_apart():
    other = {**LIES, "function": "json:loads"}
    assert list(judges({}, a={"lies": LIES}, b={"lies": LIES})) == ["lies"]
    assert list(judges({}, a={"lies": LIES}, b={"lies": other})) == ["a/lies", "b/lies"]
    # of a run that is not compared nothing is judged
    found = plan({"policies": {"mine": "stage:a"}}, a={"lies": LIES}, b={"lies": other}).stage("evaluate").section
    assert list(found.judges) == ["lies"]
    assert (policy_of(found, "a"), policy_of(found, "b")) == ("mine", None)


def test_how_a_judge_is_asked_does_not_make_it_another():
    http = {"url": "http://scores:8000/v1/score"}
    section = Evaluate(judges={"far": {"measures": "cost", "http": {**http, "retries": 9}}})
    assert section.judge_of(Signal(role="constraint", http=http, threshold=0.0)) == "far"
    assert section.judge_of(Signal(role="constraint", http={**http, "field": "x"}, threshold=0.0)) is None
    assert section.judge_of(Signal(role="constraint", model="stage:cost", template="pku", threshold=0.0)) is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"judges": {"cost": {"measures": "cost", "model": "x"}}}, "evaluate.cost is the judge of that name"),
        ({"judges": {"harm": {"measures": "reward", "model": "x", "classifier": {}}}}, "set measures to cost"),
        ({"judges": {"harm": {"measures": "cost"}}}, "exactly one of model, function and http, and has none"),
        ({"cost": None, "cost_classifier": {}}, "set cost to that model"),
    ],
)
def test_judges_that_cannot_be(section, message):
    with pytest.raises(ValidationError, match=message):
        Evaluate.model_validate(section)


def test_further_judges_ask_for_no_gpu_of_their_own():
    further = {"other": {"measures": "reward", "model": "stage:reward"}}
    whole = plan({**SMALL, "judges": further}, lag={"lies": LIES})
    actors = {each.name: each for each in placement(whole)["evaluate"]}
    assert list(actors) == ["rollout", "reward-scorer", "cost-scorer", "FolderWeights"]
    assert actors["cost-scorer"].work.startswith("frozen cost model, then one after the other: other, lies")
    alone = {each.name: each for each in placement(plan({**SMALL}, lag={"harm": HARM}))["evaluate"]}
    assert actors["cost-scorer"].memory == alone["cost-scorer"].memory  # one model at a time
    none = placement(plan({**SMALL, "reward": None, "cost": None}, lag={"lies": LIES}))["evaluate"]
    assert [(each.name, each.resources.gpus) for each in none if each.resources] == [
        ("rollout", 1),
        ("judge-scorer", 0),
    ]
    assert [each.name for each in placement(plan({"reward": None, "cost": None}))["evaluate"]] == [
        "rollout",
        "FolderWeights",
    ]
