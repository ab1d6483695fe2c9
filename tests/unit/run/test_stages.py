"""Stages as objects: what every kind says of itself, names of folders, keys, and trust in a model's code."""

import importlib
import subprocess
import sys

import pytest

from castor.config.data import DataSource
from castor.config.load import load_config
from castor.config.pipeline import Config
from castor.io.errors import CastorError
from castor.io.files import write_json, write_jsonl
from castor.run.check import check
from castor.run.files import RunFiles
from castor.run.plan import make_plan
from castor.run.stages import kinds
from tests.conftest import ROOT
from tests.plans import plan_of

DATA = {"data": {"source": "synthetic"}}
RUN = {"steps": 1, "signals": {"help": {"role": "objective", "model": "org/reward"}}, "policy": {"model": "org/policy"}}


def test_every_kind_has_a_field_of_the_config_and_a_runner():
    assert set(kinds()) <= set(Config.model_fields)
    for field, kind in kinds().items():
        module, _, function = kind.runner.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), field


def test_stages_know_their_facts_without_sections_or_torch():
    """The command line names a command for every kind; a section's import takes a quarter of a second."""
    program = (
        "import sys; from castor.run.stages import kinds; kinds();"
        "assert not {'torch', 'pydantic', 'yaml', 'castor.config.pipeline'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("name", ["sft", "a b", "logs", "ppo/x"])
def test_a_stage_is_named_like_a_folder(name):
    with pytest.raises(CastorError, match=f"'{name}' cannot name a folder of the run"):
        plan_of({"sft": DATA, "rlhf": {name: RUN}})


def test_two_stages_of_one_name_are_refused():
    with pytest.raises(CastorError, match="'same' cannot name a folder of the run"):
        plan_of({"moderation": {"same": DATA}, "rlhf": {"same": RUN}})


HOW = [
    "learner.timeout_s", "learner.resources.cpus", "learner.ranks", "rollout.workers", "rollout.timeout_s",
    "rollout.chunk_size", "learner.engine.zero_stage", "signals.help.ranks", "policy.reference.ranks",
]  # fmt: skip


@pytest.mark.parametrize("option", HOW)
def test_how_an_rlhf_run_is_computed_reruns_nothing(option, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        "sft: {data: {source: synthetic}}\n"
        "rlhf: {ppo: {steps: 1, signals: {help: {role: objective, model: org/reward}}, policy: {model: org/policy}}}\n"
    )

    def key(*overrides):
        plan = make_plan(load_config(config, [f"run_dir={tmp_path / 'run'}", *overrides]))
        return plan.key(plan.stage("ppo"))

    assert key(f"rlhf.ppo.{option}=2") == key()
    assert key("rlhf.ppo.learner.clip_range_ratio=0.3") != key()
    assert key("rlhf.ppo.rollout.temperature=0.5") != key()
    assert key("wandb.mode=disabled") == key()


def test_trust_goes_on_to_what_is_made_of_a_model(tmp_path):
    trusted = {"source": "org/own-code", "revision": "abc", "trust_remote_code": True}
    plan = plan_of({"run_dir": str(tmp_path), "sft": DATA | {"model": trusted}, "reward": DATA, "rlhf": {"ppo": RUN}})
    check(plan)
    for folder in ("sft", "reward"):
        write_json(tmp_path / folder / "config.json", {})
    assert plan.models(plan.stage("sft"))["model"].revision == "abc"
    assert all(plan.model(name).trust_remote_code for name in (plan.stage("sft").section.model, "stage:reward"))
    assert not plan.model("org/policy").trust_remote_code


def test_every_path_of_a_run_lies_in_its_folder(tmp_path):
    files = RunFiles(tmp_path)
    stage = files.stage("round-1/reward")
    paths = [*vars(files).values(), *vars(stage).values(), *vars(stage.training).values(), stage.bad_rows(1, 2, "ptx")]
    paths = [path for path in paths if hasattr(path, "is_relative_to")]
    assert len(paths) > 20
    assert all(path.is_relative_to(tmp_path) for path in paths)
    assert stage.bad_rows(0, 1) == tmp_path / "round-1" / "reward.bad_rows.jsonl"
    assert stage.bad_rows(1, 2, "ptx") == tmp_path / "round-1" / "reward.ptx.bad_rows.1.jsonl"


def test_rows_of_a_stage_are_a_file_of_the_run(tmp_path):
    plan = plan_of({"run_dir": str(tmp_path), "sft": DATA, "collect": {"policy": "org/policy"}})
    source = DataSource(source="stage:collect", limit=3)
    with pytest.raises(CastorError, match=r"stage collect has written no rows yet .*run that stage first"):
        plan.source(source)
    write_jsonl(tmp_path / "collect" / "rows.jsonl", [])
    assert plan.source(source) == DataSource(source=str(tmp_path / "collect" / "rows.jsonl"), limit=3)
    assert plan.source(DataSource(source="org/set")).source == "org/set"
