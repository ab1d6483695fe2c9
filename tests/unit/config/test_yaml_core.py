"""YAML as config files and overrides are read: the core schema of YAML 1.2, keys once, numbers that keep their text."""

import copy
import math
import pickle

import pytest
import yaml

from castor.config.load import load_config
from castor.config.yaml_core import parse, plain_scalar
from castor.io.errors import CastorError

BASE = """
wandb: {mode: disabled}
rlhf:
  lag:
    steps: 3
    signals:
      help: {role: objective, model: stage:reward}
      harm: {role: constraint, model: stage:cost, threshold: -0.5}
    multipliers: {lambda_init: 1.0}
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(BASE)
    return file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("-3", -3), ("+3", 3), ("0012", 12), ("0o17", 15), ("0x1F", 31), ("1e-6", 1e-6), ("1E5", 1e5),
        (".5", 0.5), ("5.", 5.0), ("+1.5e+2", 150.0), (".inf", math.inf), ("-.INF", -math.inf), ("", None), ("~", None),
        ("null", None), ("NULL", None),
    ],
)  # fmt: skip
def test_numbers_and_null_of_the_core_schema(text, value):
    assert plain_scalar(text) == value
    assert parse(f"a: {text}") == {"a": value}
    if value is not None:
        assert str(plain_scalar(text)) == text


def test_nan_is_a_number():
    assert math.isnan(plain_scalar(".nan"))


@pytest.mark.parametrize(
    "text",
    ["on", "no", "y", "true", "False", "1_000", "12:30", "2026-11-21", "0b1", "1e", "e5", "=", "nan", "inf", "1 2",
     "nUll", "9" * 301 + "x"],
)  # fmt: skip
def test_everything_else_is_text(text):
    assert parse(f"a: {text}") == {"a": text}
    assert parse(f"[{text}]") == [text]


def test_quoted_and_block_scalars_are_text():
    assert parse("a: '12'\nb: \"null\"\nc: |-\n  1e5\nd: >-\n  ~\n") == {"a": "12", "b": "null", "c": "1e5", "d": "~"}


def test_keys_are_text():
    assert parse("on: 1\n2: 3\nnull: 4\n1e5: 5") == {"on": 1, "2": 3, "null": 4, "1e5": 5}


def test_written_numbers_survive_copies():
    number = plain_scalar("0012")
    for twin in (pickle.loads(pickle.dumps(number)), copy.deepcopy(number)):
        assert (twin, str(twin)) == (12, "0012")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("seed: 1\nwandb: {}\nseed: 2\n", "'seed' stands twice, on lines 1 and 3"),
        ("cost:\n  a: 1\nreward: {}\ncost:\n  b: 2\n", "'cost' stands twice, on lines 1 and 4"),
        ("a:\n  b:\n    c: 1\n    d: 2\n    c: 3\n", "'c' stands twice, on lines 3 and 5"),
        ("a: [{b: 1}, {c: 1,\n b: 2,\n c: 3}]\n", "'c' stands twice, on lines 1 and 3"),
        ("{a: 1, 'a': 2}\n", "'a' stands twice, on line 1"),
        ("1: a\n'1': b\n", "'1' stands twice, on lines 1 and 2"),
        ("x: &x {p: 1}\ny:\n  <<: *x\n  <<: *x\n", "'<<' stands twice, on lines 3 and 4"),
    ],
)
def test_a_key_that_stands_twice_is_an_error_with_both_lines(tmp_path, text, lines):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(CastorError, match=lines) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file} line ")


def test_a_key_that_stands_twice_is_found_in_extended_files_and_in_overrides(path, tmp_path):
    twice = tmp_path / "twice.yaml"
    twice.write_text("wandb: {mode: offline}\nseed: 1\nseed: 2\n")
    child = tmp_path / "child.yaml"
    child.write_text("extends: twice.yaml\n")
    for arguments in ((child, []), (path, [str(twice)])):
        with pytest.raises(CastorError, match=f"{twice} line 3.*'seed' stands twice, on lines 2 and 3"):
            load_config(*arguments)
    with pytest.raises(CastorError, match=r"override 'sft.*'limit' stands twice, on line 1"):
        load_config(path, ["sft={data: {limit: 1, limit: 2}}"])


def test_merge_keys_and_anchors():
    text = "x: &x {a: 1, b: 2}\ny: &y {<<: *x, b: 3}\nz: {<<: [*y, *x], c: 1}\nw: {<<: *y, a: 9}\nv: *y\n"
    assert parse(text) == {
        "x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}, "z": {"a": 1, "b": 3, "c": 1}, "w": {"a": 9, "b": 3},
        "v": {"a": 1, "b": 3},
    }  # fmt: skip


@pytest.mark.parametrize("text", ["a: &a {b: *a}", "a: &a [*a]", "[a]: 1", "a: !!python/object:os.system {}", "a: [1,"])
def test_what_is_no_config_is_a_yaml_error(text):
    with pytest.raises(yaml.YAMLError):
        parse(text)


WORDS = ["on", "no", "true", "1e5", "0012", "1_000", "12:30", "0x1F", "2026-11-21", "1.10", "+5", "it's", "ж"]
SYNTAX = ["a: b", "a #b", "*star", "@home", "- a", "%x", "a, b]", "&a b", "!x", "| a"]  # in an override it is text


@pytest.mark.parametrize("text", WORDS + SYNTAX)
def test_a_text_option_takes_an_override_as_it_is_written(path, text):
    settings = [f"wandb.entity={text}", f"run_dir={text}", f"sft.data.revision={text}", "sft.data.source=org/rows"]
    config = load_config(path, settings)
    assert (config.wandb.entity, str(config.run_dir), config.sft.data[0].revision) == (text, text, text)


@pytest.mark.parametrize("text", WORDS)
def test_a_text_option_takes_what_a_file_says_as_it_is_written(path, text):
    path.write_text(f"wandb: {{entity: {text}}}\nrun_dir: {text}\n")
    config = load_config(path)
    assert (config.wandb.entity, str(config.run_dir)) == (text, text)


def test_quotes_make_text_of_an_override(path):
    for text, value in {"'null'": "null", '"[a]"': "[a]", '"a\\nb"': "a\nb", "''": "", "null": None, "": None}.items():
        assert load_config(path, [f"wandb.entity={text}"]).wandb.entity == value
    assert load_config(path, ["template=Q: {prompt} A: "]).template == "Q: {prompt} A: "


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "0.000001", "1.e-6"])
def test_a_number_option_takes_numbers_in_files_and_overrides(path, text):
    key = "rlhf.lag.learner.engine.optimizer.lr"
    assert load_config(path, [f"{key}={text}"]).rlhf["lag"].learner.engine.optimizer.lr == 1e-6
    path.write_text(BASE + f"    learner: {{engine: {{optimizer: {{lr: {text}}}}}}}\n")
    rate = load_config(path).rlhf["lag"].learner.engine.optimizer.lr
    assert (type(rate), rate) == (float, 1e-6)


def test_an_integer_option_takes_whole_numbers_however_they_are_written(path):
    for text, value in {"7": 7, "007": 7, "1e3": 1000, "1_000": 1000, "0x10": 16, "0o10": 8}.items():
        seed = load_config(path, [f"seed={text}"]).seed
        assert (type(seed), seed) == (int, value)


@pytest.mark.parametrize(
    ("override", "finding"),
    [
        ("seed=12:30", "seed: .*valid integer.*'12:30'"),
        ("seed=true", "seed: .*valid integer.*'true'"),
        ("seed=on", "seed: .*valid integer.*'on'"),
        ("seed=1.5", "seed: .*valid integer"),
        ("rlhf.lag.learner.engine.optimizer.lr=fast", "lr: .*valid number.*'fast'"),
        ("rlhf.lag.advantage.whiten=perhaps", "whiten: .*valid boolean.*'perhaps'"),
        ("template={prompt}", "template: .*valid string: put it in quotes if it is not meant as a mapping"),
        ("template={prompt} A:", r"the value is not valid YAML .*: a text that starts with \{ must stand in quotes"),
        ("template=\"Q", 'the value is not valid YAML .*: a text that starts with " must stand in quotes'),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_shown(path, override, finding):
    with pytest.raises(CastorError, match=finding):
        load_config(path, [override])


@pytest.mark.parametrize("text", ["true", "True", "yes", "on", "false", "no", "off"])
def test_booleans(path, text):
    wanted = text.lower() in ("true", "yes", "on")
    assert load_config(path, [f"rlhf.lag.advantage.whiten={text}"]).rlhf["lag"].advantage.whiten == wanted
    path.write_text(f"reward: {{data: {{}}, head_bias: {text}, normalize: {text}}}\n")
    reward = load_config(path).reward
    assert (reward.head_bias, reward.normalize) == (wanted, "held_out" if wanted else "none")
