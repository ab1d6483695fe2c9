"""Configs: what is accepted, what is refused and in which words, and that overrides go where they say."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from castor.config.assess import Assess
from castor.config.load import dump_config, load_config, load_section
from castor.config.model import Model
from castor.config.serve import Serve
from castor.io.errors import CastorError
from castor.io.files import write_json
from castor.run.files import RunFiles
from castor.run.plan import make_plan
from castor.run.records import Records

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))

BASE = """
sft: {data: {source: synthetic}}
rlhf:
  ppo_lag: &run
    steps: 3
    signals:
      helpfulness: &helpfulness {role: objective, model: stage:reward}
      harm: {role: constraint, model: stage:cost, threshold: -0.5}
    multipliers: {lambda_init: 1.0}
    learner: &learner {clip_range_ratio: 0.2}
  ppo:
    <<: *run
    signals: {helpfulness: *helpfulness}
    multipliers: null
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(BASE)
    return file


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_config_loads_and_survives_being_dumped(file, tmp_path):
    config = load_config(file)
    copy = tmp_path / "resolved.yaml"
    copy.write_text(dump_config(config), encoding="utf-8")
    assert load_config(copy) == config


@pytest.mark.parametrize(
    ("override", "finding"),
    [
        ("rlhf.ppo_lag.stepz=3", "rlhf.ppo_lag: unknown key 'stepz'; did you mean 'steps'?"),
        ("rlhf.ppo_lag.learner.clip_ratio=0.1", "unknown key 'clip_ratio'; did you mean 'clip_range_ratio'?"),
        ("rlhf.ppo_lag.multipliers.qqq=1", "unknown key 'qqq'; known keys: rule, lambda_init"),
        ("rlhf.ppo_lag.prompts_per_step=10", None),
        ("rlhf.ppo_lag.learner.mini_batches=3", "64 responses a step .* 3 mini-batches over 1 ranks.* multiple of 3"),
        ("rlhf.ppo_lag.learner.ranks=5", "cannot be divided into 1 mini-batches over 5 ranks"),
        ("rlhf.ppo_lag.multipliers.lambda_max=0.5", r"lambda_max \(0.5\) is below lambda_init \(1\)"),
        ("rlhf.ppo_lag.multipliers.lambda_max=1", None),
        ("rlhf.ppo_lag.multipliers.lambda_max=null", "rule sgd_log moves log λ.* needs a lambda_max"),
        ("rlhf.ppo_lag.multipliers=null", "constraint 'harm' has no price: add a multipliers section"),
        ("rlhf.ppo.multipliers={rule: sgd_log}", "rlhf.ppo: multipliers without a constraint: set multipliers to null"),
        ("rlhf.ppo_lag.signals.harm.threshold=null", "a constraint needs exactly one limit"),
        ("rlhf.ppo_lag.signals.harm.unsafe_share=0.1", "a constraint needs exactly one limit"),
        ("rlhf.ppo_lag.signals.harm.weight=2", "a constraint has no weight"),
        ("rlhf.ppo_lag.signals.harm.threshold=.nan", "rlhf.ppo_lag.signals.harm.threshold: .*finite"),
        ("rlhf.ppo_lag.learner.engine.optimizer.lr=.inf", "learner.engine.optimizer.lr: .*finite"),
        ("rlhf.ppo_lag.learner.engine.optimizer.lr=-1e-6", "learner.engine.optimizer.lr: .*greater than 0"),
        ("rlhf.ppo_lag.learner.engine.optimizer.lr=fast", "learner.engine.optimizer.lr: .*number"),
        ("rlhf.ppo_lag.signals.helpfulness.threshold=0", "an objective has no threshold"),
        ("rlhf.ppo_lag.signals.helpfulness.unsafe_share=0.1", "an objective has no unsafe_share"),
        ("rlhf.ppo_lag.signals.helpfulness=null", "rlhf.ppo_lag.signals.helpfulness: "),
        ("rlhf.ppo_lag.signals.helpfulness={role: constraint, model: a, threshold: 0}", "no objective among"),
        ("rlhf.ppo_lag.signals.helpfulness={role: monitor, model: a}", "no objective among"),
        ("rlhf.ppo_lag.signals.gold={role: monitor, function: a:b, threshold: 0}", "a monitor has no threshold"),
        ("rlhf.ppo_lag.signals.gold={role: monitor, function: a:b, weight: 2}", "a monitor has no weight"),
        ("rlhf.ppo_lag.signals={}", "rlhf.ppo_lag.signals: .*at least 1"),
        ("rlhf.ppo_lag.steps=0", "rlhf.ppo_lag.steps: .*greater than or equal to 1"),
        ("sft.data={split: dev}", "sft.data.0: the synthetic corpus has the splits train, validation and test"),
        ("sft.data={revision: main}", "revision and name belong to hub data sets"),
        ("sft.data=[]", "sft.data: "),
        ("sft.validation_share=0", "sft.validation_share: .*greater than 0"),
        ("model.heads=5", "hidden_size 192 is not an even multiple of heads 5"),
        ("template=llama", "template 'llama' is neither auto, chat, pku nor a text"),
    ],
)  # fmt: skip
def test_options_are_checked_in_words_that_name_the_place(path, override, finding):
    if finding is None:
        load_config(path, [override])
        return
    with pytest.raises(CastorError, match=finding) as caught:
        load_config(path, [override])
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())


def test_an_indivisible_batch_is_refused_and_its_multiple_accepted(path):
    split = ["rlhf.ppo_lag.learner.ranks=2", "rlhf.ppo_lag.learner.mini_batches=5"]
    with pytest.raises(CastorError, match="make them a multiple of 10"):
        load_config(path, split)
    load_config(path, [*split, "rlhf.ppo_lag.prompts_per_step=5", "rlhf.ppo_lag.samples_per_prompt=4"])


def test_every_finding_gets_a_line(path):
    with pytest.raises(CastorError) as caught:
        load_config(path, ["seed=-1", "ray.object_store_mib=1", "wandb.mode=maybe"])
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "seed", "ray.object_store_mib", "wandb.mode",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"rlhf: [1,\n  2", "line 2, column 4: not valid YAML"),
        (b"a: b: c", "line 1, column 5: not valid YAML"),
        (b"a: \xe9", r"is not UTF-8 text \(byte 3\)"),
        (b"- 1\n", "holds no mapping of sections"),
        (b"", "holds no mapping of sections"),
        (b"run_dir: !!python/object:os.system {}", "not valid YAML"),
        (b"seed: 2026-13-45", "seed: .*valid integer"),
    ],
)
def test_a_file_that_is_no_config_is_said_so(tmp_path, content, finding):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(CastorError, match=finding) as caught:
        load_config(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(CastorError, match=f"no config file at {tmp_path / 'run.yaml'}"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(CastorError, match=f"{tmp_path} is a folder"):
        load_config(tmp_path)


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.0e-6", "0.000001", "1.e-6"])
def test_an_override_reads_floats_as_a_person_writes_them(path, text):
    config = load_config(path, [f"rlhf.ppo_lag.learner.engine.optimizer.lr={text}"])
    assert config.rlhf["ppo_lag"].learner.engine.optimizer.lr == 1e-6


@given(st.floats(1e-12, 1.0))
def test_every_float_survives_an_override(rate):
    file = CONFIGS[0].parent / "demo.yaml"
    config = load_config(file, [f"rlhf.ppo_lag.advantage.kl_coeff={rate!r}"])
    assert config.rlhf["ppo_lag"].advantage.kl_coeff == rate


def test_floats_without_a_dot_are_read_from_the_file_too(path):
    path.write_text(BASE.replace("clip_range_ratio: 0.2", "engine: {optimizer: {lr: 1e-6}}"))
    assert load_config(path).rlhf["ppo_lag"].learner.engine.optimizer.lr == 1e-6


def test_overrides_of_other_types(path):
    config = load_config(
        path,
        ["sft=null", "run_dir=runs/true story", "rlhf.ppo.rollout.workers=3", "sft.data.source=x", "wandb.entity=none",
         "rlhf.ppo.rollout.resources={custom: {fast: 1}}",
         "rlhf.ppo.policy.model={source: x/y, trust_remote_code: true}"],
    )  # fmt: skip
    assert config.sft is not None
    assert config.sft.data[0].source == "x"  # a later override starts the section anew
    assert config.run_dir == Path("runs/true story")
    assert config.wandb.entity == "none"
    ppo = config.rlhf["ppo"]
    assert (ppo.rollout.workers, ppo.policy.model) == (3, Model(source="x/y", trust_remote_code=True))
    assert ppo.rollout.resources.custom == {"fast": 1.0}
    assert load_config(path, ["sft=null"]).sft is None


def test_overriding_one_anchored_section_does_not_leak_into_another(path):
    config = load_config(path, ["rlhf.ppo.learner.clip_range_ratio=0.1", "rlhf.ppo.signals.helpfulness.model=other"])
    assert config.rlhf["ppo"].learner.clip_range_ratio == 0.1
    assert config.rlhf["ppo_lag"].learner.clip_range_ratio == 0.2
    assert config.rlhf["ppo"].signals["helpfulness"].model == "other"
    assert config.rlhf["ppo_lag"].signals["helpfulness"].model == "stage:reward"


@pytest.mark.parametrize(
    ("override", "finding"),
    [
        ("seed", "not of the form section.key=value"),
        ("=1", "not of the form section.key=value"),
        ("seed.deep=1", "'seed' is not a section"),
        ("rlhf.ppo_lag.steps.deep=1", "'steps' is not a section"),
        ("sft.data=[1,", "the value is not valid YAML"),
    ],
)
def test_an_override_that_cannot_be_applied_is_named(path, override, finding):
    path.write_text(BASE + "seed: 1\n")
    with pytest.raises(CastorError, match=finding):
        load_config(path, [override])


@pytest.mark.parametrize("name", ["2026-11-21", "2026-13-45"])
def test_a_folder_named_by_a_date_is_text(path, name):
    path.write_text(f"{BASE}run_dir: {name}\n")
    assert load_config(path).run_dir == load_config(path, [f"run_dir={name}"]).run_dir == Path(name)


def test_the_resolved_config_reads_back_to_the_same(path, tmp_path):
    config = load_config(
        path,
        ["rlhf.ppo_lag.learner.engine.optimizer.lr=1e-9", "model={}", "run_dir=läufe/a", "wandb.entity=on",
         "wandb.project=1e5", "sft.data={source: org/rows, revision: 0012, name: '~'}"],
    )  # fmt: skip
    copy = tmp_path / "resolved.yaml"
    copy.write_text(dump_config(config), encoding="utf-8")
    assert load_config(copy) == config
    values = yaml.safe_load(copy.read_text(encoding="utf-8"))
    assert values["rlhf"]["ppo_lag"]["advantage"]["kl_coeff"] == 0.02  # defaults are written out


def test_constraints_keep_the_configs_order_and_sections_are_frozen(path):
    run = load_config(path).rlhf["ppo_lag"]
    assert list(run.constraints) == ["harm"]
    with pytest.raises(ValidationError, match="frozen"):
        run.steps = 4


def test_a_stage_is_a_folder_of_the_run(path, tmp_path):
    plan = make_plan(load_config(path, [f"run_dir={tmp_path}"]))
    for name, place in (("sft", "sft"), ("ppo", "ppo/policy")):
        with pytest.raises(CastorError, match=f"stage:{name} has no model at {tmp_path / place} yet: run `castor "):
            plan.model(f"stage:{name}")
        write_json(tmp_path / place / "config.json", {})
        assert plan.model(f"stage:{name}").name == str(tmp_path / place)
    assert plan.model("org/name").name == "org/name"


def test_a_stage_is_recorded_once_it_has_finished(tmp_path):
    records = Records(RunFiles(tmp_path))
    assert records.of("sft") is None
    with records.recorded("sft", "one"):
        assert records.of("sft") is None
    finished = records.of("sft")
    assert finished is not None
    assert (finished.key, finished.seconds >= 0) == ("one", True)
    with pytest.raises(RuntimeError, match="boom"), records.recorded("sft", "two"):
        raise RuntimeError("boom")
    assert records.of("sft") is None  # what the failed attempt may have overwritten is not taken for finished
    write_json(tmp_path / "stages.json", {"sft": {"key": "one", "seconds": 1.0}})  # as format 1 had it
    with pytest.raises(CastorError, match="made by another version of Castor"):
        records.of("sft")


def test_a_tilde_is_the_home_folder_wherever_a_path_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "base.yaml").write_text(BASE + "run_dir: ~/runs/a\n")
    (tmp_path / "child.yaml").write_text("extends: ~/base.yaml\n")
    (tmp_path / "over.yaml").write_text("seed: 7\n")
    config = load_config(Path("~/child.yaml"), ["~/over.yaml"])
    assert (config.run_dir, config.seed) == (tmp_path / "runs/a", 7)
    assert load_config(Path("~/child.yaml"), ["run_dir=~/b"]).run_dir == tmp_path / "b"
    assert load_section(Serve, {"run_dir": "~/runs/a"}, []).run_dir == tmp_path / "runs/a"
    assess = load_section(Assess, {}, ["models.a=~/cost", "models.b=org/cost", "data=~/rows.jsonl", "out=~/out"])
    assert assess.models == {"a": str(tmp_path / "cost"), "b": "org/cost"}
    assert assess.out == tmp_path / "out"


def test_a_home_folder_that_is_not_known_is_said(path):
    with pytest.raises(CastorError, match="run_dir: ~nobody-here/x: no home folder is known for ~nobody-here"):
        load_config(path, ["run_dir=~nobody-here/x"])
    with pytest.raises(CastorError, match=r"~nobody-here/x\.yaml: no home folder is known"):
        load_config(Path("~nobody-here/x.yaml"))


def test_a_config_file_below_a_file_is_said(path):
    with pytest.raises(CastorError, match=r"cannot be read \(Not a directory\)"):
        load_config(path / "x.yaml")
