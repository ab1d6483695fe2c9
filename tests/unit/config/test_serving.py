"""The sections of a config that serve: what contradicts itself is refused, and a policy's own options go first."""

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from castor.config.gateway import Gateway
from castor.config.guard import STRICTNESS, Guard, GuardMode, Windows
from castor.config.serve import Replicas, Serve


def test_modes_that_deliver_no_unsafe_answer_are_the_strictest() -> None:
    assert set(STRICTNESS) == set(get_args(GuardMode))
    assert STRICTNESS["off"] < STRICTNESS["annotate"] < STRICTNESS["withhold"]
    assert {STRICTNESS[mode] for mode in ("withhold", "best_of", "regenerate")} == {max(STRICTNESS.values())}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "strict"}, "mode"),
        ({"categories": {"theft": 1.01}}, "categories.theft: 1.01 is no probability"),
        ({"categories": {"theft": -0.1}}, "categories.theft: -0.1 is no probability"),
        ({"categories": {"theft": float("nan")}}, "categories.theft"),
        ({"cost_limit": float("nan")}, "cost_limit"),
        ({"cost_limit": float("inf")}, "cost_limit"),
        ({"severity": 0}, "severity"),
        ({"severity": 4}, "severity"),
        ({"n": 1}, "n"),
        ({"attempts": 0}, "attempts"),
        ({"refusal": ""}, "refusal"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"windows": {"tokens": 0}}, "windows.tokens"),
        ({"windows": {"suspicion": -0.1}}, "windows.suspicion"),
        ({"windows": {"tokens": 4, "overlap": 4}}, "overlap 4 holds back whole windows of 4 tokens"),
        ({"window": {}}, "unknown key 'window'; did you mean 'windows'"),
    ],
)
def test_guards_that_are_none(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Guard.model_validate(values)


def test_the_defaults_fail_closed() -> None:
    guard = Guard()
    assert (guard.mode, guard.combine, guard.cost_limit, guard.severity) == ("auto", "any", 0.0, 1)
    assert guard.refusal.strip()
    assert Windows(tokens=4, overlap=3).overlap == 3
    assert Guard.model_validate({"categories": {"theft": 0, "harm": 1}}).categories == {"theft": 0.0, "harm": 1.0}


def test_replicas_do_not_shrink() -> None:
    assert Replicas(replicas=2, max_replicas=2).max_replicas == 2
    with pytest.raises(ValidationError, match="max_replicas 1 is less than replicas 2"):
        Replicas(replicas=2, max_replicas=1)


@pytest.mark.parametrize(
    "values",
    [
        {"port": 0}, {"port": 65536}, {"replicas": 0}, {"max_running": 0}, {"max_waiting": -1}, {"max_wait_s": 0},
        {"replicas": 2, "max_replicas": 1}, {"target_ongoing_requests": 0},
        {"limits": {"body_kib": 0}}, {"limits": {"n": 0}}, {"limits": {"max_tokens": 0}}, {"limits": {"seconds": 0}},
        {"audit": {"files": 0}}, {"audit": {"max_mib": 0}}, {"routes": ["/v1/embeddings"]}, {"hosts": "0.0.0.0"},
    ],
    ids=str,
)  # fmt: skip
def test_gateways_that_are_none(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Gateway.model_validate(values)


def test_a_gateway_listens_to_this_machine_and_writes_no_texts() -> None:
    gateway = Gateway()
    assert (gateway.host, gateway.audit.texts, gateway.routes) == ("127.0.0.1", False, [])


def test_a_policy_takes_from_engine_what_it_does_not_say() -> None:
    values = {
        "policies": {"mine": {"model": "org/mine", "max_num_seqs": 64}, "other": {"model": "org/other", "replicas": 2}},
        "engine": {"max_num_seqs": 3, "replicas": 4, "guard": {"mode": "annotate"}},
        "guard": {"mode": "withhold"},
    }
    config = Serve.model_validate(values)
    mine, other = config.policy("mine"), config.policy("other")
    assert (mine.model, mine.max_num_seqs, mine.replicas) == ("org/mine", 64, 4)  # the default, and said so
    assert (other.model, other.max_num_seqs, other.replicas) == ("org/other", 3, 2)
    assert config.guard_of("mine").mode == "annotate"
    assert config.policy("nobody").max_num_seqs == 3


def test_a_guard_of_ones_own() -> None:
    policies = {"mine": {"model": "org/mine", "guard": {"mode": "off"}}, "other": {"model": "org/other"}}
    config = Serve.model_validate({"policies": policies, "guard": {"mode": "best_of", "n": 5}})
    assert config.guard_of("mine") == Guard(mode="off")  # as a whole: nothing of the common one is left
    assert config.guard_of("other") == Guard(mode="best_of", n=5)


def test_a_list_of_policies_is_one_of_stages() -> None:
    config = Serve.model_validate({"run_dir": "run", "policies": ["sft", "lag"]})
    assert list(config.policies) == ["sft", "lag"]
    assert config.run_dir == Path("run")
    with pytest.raises(ValidationError):
        Serve.model_validate({"run_dir": "run", "policies": ["sft", {"lag": {}}]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give run_dir, or policies with a model each"),
        ({"policies": []}, "give run_dir, or policies with a model each"),
        ({"run_dir": "run", "engine": {"model": "org/m"}}, "engine.model would be the model of every policy"),
    ],
)
def test_what_says_nothing_to_serve(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Serve.model_validate(values)
