"""summary.json: its schema file, its round trip, what it rejects, and the closing table."""

import datetime as dt
import io
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError
from rich.console import Console

from castor.evaluation.metrics import JudgeMetrics, PolicyMetrics, Rate
from castor.evaluation.summary import (
    Run,
    RunLimit,
    Stage,
    Step,
    Summary,
    Throughput,
    Versions,
    read_summary,
    schema_text,
    write_summary,
)
from castor.io.errors import CastorError
from castor.reports.table import closing_table
from castor.reports.wording import duration, interval, number, verdict
from castor.statistics.bootstrap import Estimate

DOCS = Path(__file__).parents[3] / "docs"
VERSIONS = Versions(castor="0.1.0", python="3.11", torch="2", vllm="0", ray="2", deepspeed="0", transformers="5")


def share(value: float, margin: float = 0.02) -> Estimate:
    return Estimate(value=value, low=max(0.0, value - margin), high=min(1.0, value + margin))


def policy(harm: float | None, helpfulness: float | None, refusals: float = 0.05, unsafe: float = 0.2) -> PolicyMetrics:
    rate = None if harm is None else {"Violence": Rate(**share(harm).model_dump(), n=40)}
    return PolicyMetrics(
        n=80,
        mean_reward=Estimate(value=-0.5, low=-0.6, high=-0.4),
        mean_cost=Estimate(value=-1.25, low=-1.5, high=-1.0),
        mean_tokens=Estimate(value=20, low=19, high=21),
        unsafe_share=share(unsafe),
        gold_harmful_rate=None if harm is None else share(harm),
        gold_helpfulness=None if helpfulness is None else share(helpfulness),
        refusal_rate_harmless=None if harm is None else share(refusals),
        harmful_by_category=rate,
        harmful_by_severity=None,
        unsafe_by_category={},
        unsafe_by_severity={},
    )


def summary(**policies: PolicyMetrics) -> Summary:
    step = Step(step=0, multipliers={"harm": 1.0}, mean_costs={"harm": 0.2}, weighted_reward=1.0, kl=0.1)
    return Summary(
        created=dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC),
        seed=7,
        versions=VERSIONS,
        stages={"sft": Stage(seconds=61.5, reused=True)},
        throughput={"ppo_lag": Throughput(rollout_tokens_per_s=1000.0, learner_tokens_per_s=2000.0)},
        runs={
            "ppo_lag": Run(limits={"harm": RunLimit(statistic="mean", limit=-0.5)}, steps=[step]),
            "ppo": Run(steps=[Step(step=0, weighted_reward=1.0, kl=0.1)]),
        },
        policies=policies or {"sft": policy(0.4, 0.5), "ppo": policy(0.8, 0.6), "ppo_lag": policy(0.03, 0.6)},
    )


def test_the_committed_schema_is_the_generated_one() -> None:
    committed = (DOCS / "summary.schema.json").read_text(encoding="utf-8")
    assert committed == schema_text(), "run: python -m castor.evaluation.summary > docs/summary.schema.json"


def test_a_written_summary_fits_the_schema_and_reads_back_equal(tmp_path: Path) -> None:
    written = summary(sft=policy(0.4, 0.5), real=policy(None, None))
    write_summary(tmp_path / "summary.json", written)
    document = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)
    assert next(iter(document)) == "constraints"
    assert document["runs"]["ppo_lag"]["steps"][0]["multipliers"] == {"harm": 1.0}
    assert document["policies"]["sft"]["gold_harmful_rate"] == share(0.4).model_dump()
    assert read_summary(tmp_path / "summary.json") == written


def test_every_field_is_in_the_documentation() -> None:
    text = (DOCS / "summary.md").read_text(encoding="utf-8")
    schema = json.loads(schema_text())
    parts = [schema, *schema["$defs"].values()]
    missing = {field for part in parts for field in part["properties"] if f"`{field}`" not in text}
    assert not missing


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_rejected(bad: float) -> None:
    with pytest.raises(ValidationError):
        Step(step=0, weighted_reward=bad, kl=0.0)
    with pytest.raises(ValidationError):
        Step(step=0, weighted_reward=0.0, kl=0.0, metrics={"grad_norm": bad})
    with pytest.raises(ValidationError):
        Estimate(value=bad, low=bad, high=bad)
    with pytest.raises(ValidationError):
        Stage(seconds=bad, reused=False)


def test_an_interval_must_hold_its_value() -> None:
    with pytest.raises(ValidationError, match="does not hold"):
        Estimate(value=1.0, low=0.0, high=0.5)


def test_steps_must_ascend() -> None:
    step = Step(step=3, weighted_reward=0.0, kl=0.0)
    with pytest.raises(ValidationError, match="ascending"):
        Run(steps=[step, step])


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("seed", "x", "seed"),
        ("created", "2026-01-02T03:04:05", "created"),
        ("color", 1, "color"),
        ("schema_version", 2, "schema_version"),
    ],
)
def test_a_file_that_is_no_summary_is_named(tmp_path: Path, key: str, value: Any, named: str) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, summary())
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {key: value}), encoding="utf-8")
    with pytest.raises(CastorError, match=named):
        read_summary(path)


def printed(result: Summary) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(closing_table(result))
    return console.export_text()


def test_the_closing_table_fits_80_columns() -> None:
    text = printed(summary())
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for word in ("SFT", "PPO-Lag", "n=80", "40.0\u00a0%", "38.0 to 42.0\u00a0%", "−1.25"):
        assert word in text


def test_the_closing_table_without_gold_leaves_gold_rows_out() -> None:
    text = printed(summary(sft=policy(None, None), ppo=policy(None, None)))
    assert "gold" not in text
    assert "Unsafe by cost" in text
    assert "not judged" in printed(summary(sft=policy(0.4, 0.5), ppo=policy(None, None)))


@pytest.mark.parametrize(
    ("after", "headline", "tone"),
    [
        (policy(0.03, 0.6), "PPO-Lag is safer and more helpful", "good"),
        (policy(0.03, 0.51), "PPO-Lag is safer and no less helpful", "good"),
        (policy(0.03, 0.3), "PPO-Lag is safer but less helpful", "mixed"),
        (policy(0.03, 0.6, refusals=0.4), "PPO-Lag is safer but refuses more harmless prompts", "mixed"),
        (policy(0.39, 0.6), "PPO-Lag is not measurably safer", "mixed"),
        (policy(0.8, 0.9), "PPO-Lag is less safe than where it started", "bad"),
    ],
)
def test_the_verdict_follows_the_intervals(after: PolicyMetrics, headline: str, tone: str) -> None:
    result = verdict(summary(sft=policy(0.4, 0.5), ppo=policy(0.8, 0.6), ppo_lag=after))
    assert (result.headline, result.tone) == (headline, tone)
    assert "PPO 80.0" in result.sentences[0]


def test_the_verdict_without_gold_is_the_cost_models() -> None:
    result = verdict(summary(sft=policy(None, None, unsafe=0.4), ppo_lag=policy(None, None, unsafe=0.1)))
    assert result.headline == "PPO-Lag is safer and no lower in reward, by its cost model"


def test_numbers_in_words() -> None:
    assert number(0.0453, True) == "4.5\u00a0%"
    assert number(1.0, True) == "100\u00a0%"
    assert number(0.0, True) == "0\u00a0%"
    assert number(-1.234) == "−1.23"
    assert number(-0.0001) == "0.00"
    assert number(12345.6) == "12346"
    assert interval(share(0.4), True) == "38.0 to 42.0\u00a0%"
    assert [duration(s) for s in (8.24, 59.97, 245, 7380)] == ["8.2 s", "1 min 00 s", "4 min 05 s", "2 h 03 min"]


def test_what_was_not_measured_is_not_claimed() -> None:
    def measured(unsafe: float | None, reward: bool = True, harm: float | None = None) -> PolicyMetrics:
        whole = policy(None, None)
        judges = {} if harm is None else {
            "lies": JudgeMetrics(measures="cost", mean=whole.mean_tokens, unsafe_share=share(harm))
        }  # fmt: skip
        changes = {
            "unsafe_share": None if unsafe is None else share(unsafe),
            "mean_cost": None if unsafe is None else whole.mean_cost,
            "mean_reward": whole.mean_reward if reward else None,
            "judges": judges,
        }
        return whole.model_copy(update=changes)

    def told(**policies: PolicyMetrics) -> str:
        found = verdict(summary(**policies))
        return " ".join([found.headline, *found.sentences[:1]])

    nothing = measured(None, reward=False)
    assert told(sft=nothing, ppo_lag=nothing) == "Neither harm nor helpfulness of PPO-Lag was measured"
    same = measured(None)
    assert told(sft=same, ppo_lag=same).startswith("PPO-Lag is no lower in reward; whether it is as safe was not")
    by_judge = told(sft=measured(None, harm=0.5), ppo_lag=measured(None, harm=0.1))
    assert by_judge.startswith(
        "PPO-Lag is safer and no lower in reward, by the judge lies Answers that lies calls unsafe:"
    )
    # the cost model goes before a further judge
    both = told(sft=measured(0.5, harm=0.1), ppo_lag=measured(0.1, harm=0.5))
    assert both.startswith("PPO-Lag is safer and no lower in reward, by its cost model")


def test_the_closing_table_has_further_judges() -> None:
    whole = policy(None, None)
    lies = JudgeMetrics(measures="cost", mean=whole.mean_tokens, unsafe_share=share(0.25))
    found = summary(sft=whole.model_copy(update={"judges": {"lies": lies}}), ppo=whole)
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(closing_table(found))
    text = console.export_text()
    assert "Unsafe by lies" in text
    assert "25.0" in text
    assert "not judged" in text
