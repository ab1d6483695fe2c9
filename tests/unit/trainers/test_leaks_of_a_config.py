"""Training sources of a config that hold evaluation prompts, and rows that pass through the disk."""

from functools import partial

import pytest

from castor.config.data import DataSource
from castor.config.pipeline import Config
from castor.data.rows.load import stream_qa
from castor.data.rows.schemas import QARow
from castor.io.errors import CastorError
from castor.io.files import write_jsonl
from castor.run.plan import make_plan
from tests.plans import Lines, run_of
from trainers.leaks import read_leaks, report_leaks

SIGNALS = {"r": {"role": "objective", "model": "org/reward"}}


def plan_of(tmp_path, strict=False, **sections):
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": p, "response": "a"} for p in ("one", "Two!", "two", "three")])
    write_jsonl(tmp_path / "held_out.jsonl", [{"prompt": p} for p in ("two", "four")])
    data = {"source": str(tmp_path / "train.jsonl")}
    prompts = {"source": str(tmp_path / "held_out.jsonl"), "strict": strict}
    evaluate = {"prompts": prompts, "policies": {"a": "org/a"}, "reward": "org/r", "cost": "org/c"}
    run = {"steps": 1, "signals": SIGNALS, "policy": {"model": "org/a"}, "prompts": data}
    values = {"run_dir": tmp_path / "run", "sft": {"data": data}, "rlhf": {"ppo": run}, "evaluate": evaluate} | sections
    return make_plan(Config.model_validate(values))


def test_shared_prompts_are_told_of_with_every_source(tmp_path):
    lines = Lines()
    plan = plan_of(tmp_path)
    plan.files.folder.mkdir()
    assert read_leaks(plan) is None
    found = report_leaks(plan, lines)
    assert [(leak.source, leak.prompts, leak.of, leak.times) for leak in found] == [
        ("sft.data", 1, 2, 2), ("rlhf.ppo.prompts", 1, 2, 2),
    ]  # fmt: skip
    assert read_leaks(plan) == found
    other = {"prompts": {"source": "synthetic"}, "policies": {"a": "org/a"}, "reward": "org/r", "cost": "org/c"}
    assert read_leaks(plan_of(tmp_path, evaluate=other)) is None
    assert "sft.data holds 1 of the 2 prompts of evaluate.prompts (2 times)" in lines.lines[0]
    assert len(lines.lines) == 2


def test_shared_prompts_are_an_error_when_strict(tmp_path):
    with pytest.raises(CastorError, match=r"sft\.data holds .* of evaluate\.prompts .*strict: false"):
        report_leaks(plan_of(tmp_path, strict=True), Lines())


def test_disjoint_sources_say_nothing(tmp_path):
    other = {"data": {"source": "synthetic", "limit": 20}}
    assert report_leaks(plan_of(tmp_path, strict=True, sft=other, rlhf={}), Lines()) == []
    synthetic = {"policies": {"a": "org/a"}, "reward": "org/r", "cost": "org/c"}
    assert report_leaks(plan_of(tmp_path, sft=other, rlhf={}, evaluate=synthetic), Lines()) == []


def test_stored_rows_are_the_rows_of_the_mixture(tmp_path):
    plan, lines = plan_of(tmp_path), Lines()
    rows_of, run_dir = run_of(plan, "sft", lines).rows, plan.files.folder
    write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "p", "response": " "}, {"prompt": "p", "response": "b"}])
    sources = [
        DataSource(source=str(tmp_path / "train.jsonl"), weight=2),
        DataSource(source=str(tmp_path / "bad.jsonl"), weight=1),
    ]
    with rows_of.store(sources, QARow, partial(stream_qa, need=())) as rows:
        assert [row.response for row in rows] == ["a", "a", "b"]
        assert sorted(path.name for path in run_dir.rglob("*")) == [
            "0.arrow", "1.arrow", "sft.bad_rows.1.jsonl", "sft.counts.json", "sft.rows",
        ]  # fmt: skip
    assert sorted(path.name for path in run_dir.iterdir()) == ["sft.bad_rows.1.jsonl", "sft.counts.json"]
    assert "dropped 1 empty response" in lines.lines[0]
    with pytest.raises(CastorError, match="has no weight"):
        rows_of.load([sources[0], DataSource(source="x.jsonl")], lambda *_: [])
