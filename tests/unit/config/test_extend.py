"""Config files that build on others."""

import pytest

from castor.config.extend import merged
from castor.config.load import load_config
from castor.io.errors import CastorError

BASE = """
seed: 3
rlhf:
  lag:
    steps: 5
    signals:
      help: {role: objective, model: stage:reward, ranks: 2}
      harm: {role: constraint, model: stage:cost, threshold: -0.5}
    multipliers: {lambda_init: 2.0, lambda_lr: 0.4}
  other: {steps: 7, signals: {help: {role: objective, model: stage:reward}}}
"""


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    write("base.yaml", BASE)
    return write


def test_a_file_changes_what_it_names_and_null_gives_back_the_default(write):
    config = load_config(write("a.yaml", "extends: base.yaml\nrlhf: {lag: {steps: 6, multipliers: {lambda_lr: null}}}"))
    lag = config.rlhf["lag"]
    assert (config.seed, lag.steps, lag.multipliers.lambda_init, lag.multipliers.lambda_lr) == (3, 6, 2.0, 0.1)
    assert list(config.rlhf) == ["lag", "other"]


def test_a_run_extends_another_and_the_other_can_go(write):
    child = "extends: base.yaml\nrlhf: {mine: {extends: lag, signals: {harm: {threshold: 0.0}}}, lag: null}"
    config = load_config(write("a.yaml", child))
    assert list(config.rlhf) == ["other", "mine"]
    assert config.rlhf["mine"].signals["harm"].threshold == 0.0
    assert config.rlhf["mine"].signals["help"].ranks == 2


def test_files_are_laid_over_each_other_in_order_and_a_star_speaks_of_all(write):
    write("parts/big.yaml", 'rlhf: {"*": {steps: 9, signals: {"*": {ranks: 4}}}}\nmoderation: {"*": {epochs: 3}}')
    config = load_config(write("a.yaml", "extends: [base.yaml, parts/big.yaml]\nrlhf: {other: {steps: 8}}"))
    assert [run.steps for run in config.rlhf.values()] == [9, 8]
    assert {signal.ranks for run in config.rlhf.values() for signal in run.signals.values()} == {4}
    assert config.moderation == {}


def test_a_star_comes_before_what_is_named_beside_it():
    below = {"a": {"x": 1}, "b": {"x": 1}, "c": 1}
    for above in ({"*": {"x": 2, "y": 3}, "a": {"x": 4}}, {"a": {"x": 4}, "*": {"x": 2, "y": 3}}):
        assert merged(below, above) == {"a": {"x": 4, "y": 3}, "b": {"x": 2, "y": 3}, "c": 1}


def test_overrides_may_be_files_and_remove_runs(write):
    big = write("big.yaml", 'rlhf: {"*": {steps: 9}}')
    config = load_config(write("a.yaml", "extends: base.yaml"), [str(big), "rlhf.lag.steps=4", "rlhf.other=null"])
    assert [(name, run.steps) for name, run in config.rlhf.items()] == [("lag", 4)]
    assert load_config(write("b.yaml", "extends: base.yaml"), ["rlhf=null", "moderation=null"]).rlhf == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: nowhere.yaml", r"no config file at .*nowhere\.yaml"),
        ("extends: a.yaml", r"a\.yaml extends itself"),
        ("extends: {base: 1}", "extends must be a file, or a list of files"),
        ("extends: base.yaml\nrlhf: {mine: {extends: lg}}", r"rlhf\.mine extends 'lg', which is none .*: lag, other"),
        ("extends: base.yaml\nrlhf: {'*': 3}", r"needs keys of its own: 3"),
        ("rlhf: {mine: {extends: lag}}", "there are none"),
        ("extends: number.yaml\nrlhf: {mine: {extends: lag}}", "there are none"),
        ("extends: base.yaml\nrlhf: {mine: {extends: [lag]}}", "which is none of the entries"),
    ],
)
def test_what_names_nothing_is_said(write, text, message):
    write("number.yaml", "rlhf: 3")
    with pytest.raises(CastorError, match=message):
        load_config(write("a.yaml", text))


def test_neither_side_of_a_merge_is_changed():
    below, above = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": None, "c": [2]}, "e": {"f": None}}
    assert merged(below, above) == {"a": {"c": [2]}, "d": 2, "e": {"f": None}}
    assert below == {"a": {"b": 1, "c": [1]}, "d": 2}
    assert above == {"a": {"b": None, "c": [2]}, "e": {"f": None}}
