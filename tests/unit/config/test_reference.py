"""The reference of the options: all of them, in words, with what presets say of them, found by their names."""

import pytest

from castor.config.assess import Assess
from castor.config.differences import differences, written
from castor.config.load import load_section
from castor.config.lookup import below, find, nearest
from castor.config.pipeline import Config
from castor.config.presets import preset_settings
from castor.config.reference import ROOTS, keys
from castor.config.serve import Serve

KEYS = list(keys(Config))
BY_NAME = {key.dotted: key for key in KEYS}


@pytest.mark.parametrize("root", ROOTS.values(), ids=lambda root: root.__name__)
def test_no_option_is_without_a_meaning(root):
    known = list(keys(root))
    assert len(known) > 50
    assert [key.dotted for key in known if not key.meaning.strip() or not key.kind] == []
    assert [key.where.__name__ for key in known if not key.where.__doc__] == []


@pytest.mark.parametrize(
    ("name", "kind", "allowed", "default"),
    [
        ("seed", "whole number", "≥ 0", "0"),
        ("run_dir", "path", "", "runs/run"),
        ("sft.data", "list of sections", "not empty", "(none)"),
        ("sft.data.helpfulness", "choice or null", "longer", "null"),
        ("sft.engine.zero_stage", "choice", "0, 1, 2, 3", "2"),
        ("sft.engine.optimizer.betas", "2 numbers", "", "[0.9, 0.95]"),
        ("sft.workers", "whole number or section", "", "1"),
        ("collect.annotator.url", "text", "like ^https?://", "(none)"),
        ("rlhf.NAME.signals.NAME.unsafe_share", "number or null", "> 0 and < 1", "null"),
        ("rlhf.NAME.signals.NAME.http.headers_env", "texts by name", "", "{}"),
        ("evaluate.policies", "texts or sections by name or null", "", "null"),
        ("rounds.changes", "mappings by number", "", "{}"),
    ],
)
def test_types_ranges_and_defaults_in_words(name, kind, allowed, default):
    key = BY_NAME[name]
    assert (key.kind, key.allowed, key.default) == (kind, allowed, default)


def test_a_default_that_holds_only_while_its_section_is_left_out_says_so():
    assert BY_NAME["sft.resources.cpus"].default == "1; 0.25 where sft.resources is given"
    cpus = [
        load_section(Config, {"sft": {"data": {}} | more}, []).sft.resources.cpus
        for more in ({}, {"resources": {"threads": 2}})
    ]
    assert cpus == [1, 0.25]


def test_presets_say_what_they_set_themselves(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "a.yaml").write_text("seed: 1\nrlhf: {x: {steps: 3, learner: {engine: {optimizer: {lr: 1.0e-3}}}}}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nrlhf: {y: {extends: x, steps: 3, multipliers: null}}\n")
    (tmp_path / "parts" / "c.yaml").write_text("rlhf: {'*': {steps: 5}}\nsft: {data: [{limit: 2}, {limit: 3}]}\n")
    (tmp_path / "serve.yaml").write_text("gateway: {port: 1}\n")
    (tmp_path / "other.yaml").write_text("applications: []\n")
    settings = preset_settings(Config, tmp_path)
    assert settings == {
        ("seed",): {"1": ["a"]},
        ("rlhf", "NAME", "steps"): {"3": ["a", "b"], "5": ["parts/c"]},
        ("rlhf", "NAME", "learner", "engine", "optimizer", "lr"): {"1.0e-3": ["a"]},
        ("rlhf", "NAME", "multipliers"): {"null": ["b"]},
        ("sft", "data", "limit"): {"2": ["parts/c"], "3": ["parts/c"]},
    }
    assert preset_settings(Serve, tmp_path) == {("gateway", "port"): {"1": ["serve"]}}
    assert preset_settings(Assess, tmp_path) == {}


def names(query):
    return [key.dotted for key in find(query, KEYS)]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("seed", ["seed"]),
        ("rlhf", ["rlhf"]),
        ("rlhf.ppo_lag", ["rlhf"]),
        ("rlhf.NAME", ["rlhf"]),
        ("rlhf.steps", ["rlhf.NAME.steps"]),
        ("rlhf.ppo_lag.multipliers.rule", ["rlhf.NAME.multipliers.rule"]),
        ("rlhf.NAME.multipliers.rule", ["rlhf.NAME.multipliers.rule"]),
        ("rlhf.multipliers.rule", ["rlhf.NAME.multipliers.rule"]),
        ("multipliers.rule", ["rlhf.NAME.multipliers.rule"]),
        ("rlhf.ppo.signals.harm.critic.zero_stage", ["rlhf.NAME.signals.NAME.critic.zero_stage"]),
        ("signals.harm.threshold", ["rlhf.NAME.signals.NAME.threshold"]),
        ("reward.data.0.source", ["reward.data.source"]),
        ("0", []),
        ("lambda_lr", ["rlhf.NAME.signals.NAME.multiplier.lambda_lr", "rlhf.NAME.multipliers.lambda_lr"]),
        ("rlhf.ppo_lag.nothing", []),
        ("seed.more", []),
        ("ppo_lag", []),
    ],
)
def test_an_option_is_found_by_its_name_or_a_part_of_it(query, found):
    assert names(query) == found


def test_every_option_is_found_by_its_own_name():
    for key in KEYS:
        assert key in find(key.dotted, KEYS), key.dotted


@pytest.mark.parametrize(
    ("query", "near"),
    [
        ("rlhf.ppo_lag.multiplers.rule", "rlhf.ppo_lag.multipliers"),
        ("rlhf.ppo_lag.multipliers.lambda_ir", "rlhf.ppo_lag.multipliers.lambda_lr"),
        ("rlfh", "rlhf"),
        ("zero_stge", "sft.engine.zero_stage"),
        ("qqqqqq", None),
    ],
)
def test_the_nearest_name_is_that_where_it_goes_wrong(query, near):
    assert nearest(query, KEYS) == near


def test_what_lies_below_a_section():
    (checkpoint,) = find("rlhf.ppo.checkpoint", KEYS)
    assert [key.path[-1] for key in below(checkpoint, KEYS)] == [
        "every_steps", "every_minutes", "keep", "url", "keep_every"
    ]  # fmt: skip


def test_differences_are_those_from_what_would_hold_without_the_key():
    values = {
        "seed": 0,
        "sft": {"data": {"limit": 5}, "epochs": 2, "resources": {"threads": 2}},
        "rlhf": {
            "a": {
                "steps": 1,
                "samples_per_prompt": 2,
                "policy": {"lora": {}},
                "signals": {"r": {"role": "objective", "model": "stage:reward", "critic": None}},
                "advantage": {"estimator": "leave_one_out"},
            }
        },
    }
    found = {each.key: (each.value, each.default) for each in differences(load_section(Config, values, []))}
    assert found.pop("rlhf.a.signals.r.critic")[0] == "null"
    assert found == {
        "sft.data": ("[{limit: 5}]", "(none)"),
        "sft.epochs": ("2", "1"),
        "sft.resources.threads": ("2", "1"),
        "rlhf.a.steps": ("1", "(none)"),
        "rlhf.a.samples_per_prompt": ("2", "1"),
        "rlhf.a.policy.lora": ("{}", "null"),
        "rlhf.a.signals.r.role": ("objective", "(none)"),
        "rlhf.a.signals.r.model": ("stage:reward", "null"),
        "rlhf.a.advantage.estimator": ("leave_one_out", "gae"),
    }
    assert list(differences(Config())) == []


def test_values_in_one_line():
    assert written({"a": [1.0, 1e-6, 0.1 + 0.2], "b": None, "c": True}) == (
        "{a: [1, 1e-06, 0.30000000000000004], b: null, c: true}"
    )
