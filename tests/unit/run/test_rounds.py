"""Runs in rounds: the stages they unroll into, what may differ between rounds, and pairs that wait for a person."""

import json
import random
import time
from pathlib import Path

import pytest

from castor.config.load import dump_config, load_config
from castor.data.rows.load import stream_preferences, stream_prompts, stream_qa
from castor.data.sources.files import read_records
from castor.dry_run.describe import describe
from castor.io.errors import CastorError
from castor.io.files import write_json, write_jsonl
from castor.labelling.label_queue import LABELS, read_labelled, unlabelled_pairs
from castor.reports.wording import policy_title
from castor.run.check import check
from castor.run.plan import make_plan
from castor.run.rounds import round_policies
from tests.plans import run_of
from trainers.leaks import training_sources

CONFIGS = Path(__file__).parents[3] / "configs"


def rounds(*overrides, number=2):
    return load_config(CONFIGS / "rounds.yaml", [f"rounds={number}", *overrides])


def plan_of(*overrides, number=2):
    return make_plan(rounds(*overrides, number=number))


def sections(*overrides, number=2):
    return {name: stage.section for name, stage in plan_of(*overrides, number=number).stages.items()}


def sources(section):
    return [source.source for source in section.data]


def test_two_rounds_are_these_stages():
    plan = plan_of()
    check(plan)
    stages = sections()
    assert list(stages) == [
        "model", "sft", "round-1/collect", "round-1/reward", "round-1/cost", "round-1/ppo_lag", "round-2/collect",
        "round-2/reward", "round-2/cost", "round-2/ppo_lag", "unified/reward", "unified/cost", "evaluate",
    ]  # fmt: skip
    both = ["stage:round-1/collect", "stage:round-2/collect", "synthetic"]
    assert sources(stages["round-1/cost"]) == ["stage:round-1/collect", "synthetic"]
    assert sources(stages["round-2/reward"]) == sources(stages["unified/cost"]) == both
    assert stages["round-2/reward"].model == "stage:sft"
    first, second = stages["round-1/ppo_lag"], stages["round-2/ppo_lag"]
    assert (first.policy.model, second.policy.model) == ("stage:sft", "stage:round-1/ppo_lag")
    assert [signal.model for signal in second.signals.values()] == ["stage:round-2/reward", "stage:round-2/cost"]
    assert stages["round-2/collect"].policy == "stage:round-1/ppo_lag"
    assert (stages["evaluate"].reward, stages["evaluate"].cost) == ("stage:unified/reward", "stage:unified/cost")
    assert plan.policies == {name: f"stage:{name}" for name in ("sft", "round-1/ppo_lag", "round-2/ppo_lag")}


def test_the_first_round_is_the_run_without_rounds():
    with_rounds, without = sections(), sections(number="null")
    assert list(without) == ["model", "sft", "collect", "reward", "cost", "ppo_lag", "evaluate"]
    assert with_rounds["round-1/collect"] == without["collect"]
    for name in ("reward", "cost", "ppo_lag"):
        renamed = json.loads(with_rounds[f"round-1/{name}"].model_dump_json().replace("stage:round-1/", "stage:"))
        assert renamed == json.loads(without[name].model_dump_json())
    names = ("sft", "collect", "ppo_lag", "round-1/collect", "round-1/ppo_lag", "round-2/collect", "unified/reward")
    plan = plan_of()
    seeds = [plan.seed(name) for name in names]
    assert seeds[:5] == [0] * 5
    assert len(set(seeds)) == 3


def test_every_round_takes_the_next_prompts():
    stages = sections("collect.prompts.limit=100", "collect.skip=10", number=3)
    collects = [stages[f"round-{k}/collect"] for k in (1, 2, 3)]
    assert [(each.skip, each.prompts.limit) for each in collects] == [(10, 100), (100, 190), (190, 280)]
    with pytest.raises(CastorError, match="passes over all"):
        rounds("collect.prompts.limit=10", "collect.skip=10")


def test_a_source_is_looked_through_as_its_round_reads_it():
    """Also where a cost model learns from safety labels alone; the weight of a source is no other source."""
    data = "[{source: stage:collect, weight: 3}, {source: synthetic, limit: 10, weight: 1}]"
    found = training_sources(plan_of("cost.loss=sign", f"cost.data={data}"))
    streams = {key: stream for key, source, stream in found if source.source == "synthetic"}
    assert streams["round-1/collect.prompts"] is streams["round-2/collect.prompts"] is stream_prompts
    assert (
        streams["round-1/cost.data.1"] is streams["round-2/cost.data.2"] is streams["unified/cost.data.2"] is stream_qa
    )
    assert streams["round-1/reward.data.1"] is stream_preferences
    assert "round-2/ppo_lag.prompts" in streams


def test_weights_of_new_rows_are_shared_by_the_rounds():
    data = "[{source: stage:collect, weight: 3}, {source: synthetic, limit: 10, weight: 1}]"
    stages = sections(f"reward.data={data}", number=3)
    assert [source.weight for source in stages["round-3/reward"].data] == [1, 1, 1, 1]
    assert [source.weight for source in stages["round-1/reward"].data] == [3, 1]


def test_options_can_differ_between_rounds():
    changes = "{2: {rlhf.ppo_lag.multipliers.lambda_init: 0.25, collect.prompts.limit: 7}}"
    stages = sections(f"rounds={{count: 3, unified: false, changes: {changes}}}")
    assert [stages[f"round-{k}/ppo_lag"].multipliers.lambda_init for k in (1, 2, 3)] == [1.0, 0.25, 1.0]
    assert [stages[f"round-{k}/collect"].prompts.limit for k in (1, 2, 3)] == [1000, 1007, 2007]
    assert "unified/reward" not in stages
    assert stages["evaluate"].cost == "stage:round-3/cost"


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ("{3: {reward.max_steps: 1}}", "only the rounds 1 to 2"),
        ("{1: {seed: 1}}", r"rounds\.changes\.1\.seed: only options of collect, reward"),
        ("{2: {reward.max_step: 1}}", r"rounds\.changes\.2: reward: .*did you mean 'max_steps'"),
        ("{2: {rlhf.ppo_lag.steps.deep: 1}}", "'steps' is not a section"),
    ],
)
def test_changes_that_cannot_be_made_are_named(changes, finding):
    with pytest.raises(CastorError, match=finding):
        check(plan_of(f"rounds={{count: 2, changes: {changes}}}"))


@pytest.mark.parametrize(
    ("overrides", "finding"),
    [
        (["rlhf={}"], "one rlhf run, and the config has 0"),
        (["cost=null"], "add a cost section"),
        (["collect.prompts.limit=null"], "give a limit"),
        (["reward.data={source: synthetic}"], r"add the source stage:collect to reward\.data"),
        (["dpo.unified={data: {source: synthetic}}"], "'unified' names a folder of the rounds"),
        (["rounds=0"], "greater than or equal to 1"),
    ],
)
def test_rounds_need_their_stages(overrides, finding):
    with pytest.raises(CastorError, match=finding):
        rounds(*overrides)


def test_a_dry_run_shows_the_rounds_and_the_config_reads_back(tmp_path):
    config = rounds()
    start = time.process_time()  # of this process alone: a loaded machine is no slow plan
    text = describe(make_plan(config))
    assert time.process_time() - start < 60
    stages = text.split("Stages, in order")[1].split("Placement")[0].split()
    assert "round-2/ppo_lag" in stages
    assert "stage:unified/cost" in stages
    copy = tmp_path / "resolved.yaml"
    copy.write_text(dump_config(config), encoding="utf-8")
    assert load_config(copy) == config


def test_models_of_a_round_are_found(tmp_path):
    plan = plan_of(f"run_dir={tmp_path}")
    for stage, place in (("round-1/ppo_lag", "round-1/ppo_lag/policy"), ("round-2/cost", "round-2/cost")):
        with pytest.raises(CastorError, match="run `castor pipeline CONFIG` first"):
            plan.model(f"stage:{stage}")
        write_json(tmp_path / place / "config.json", {})
        assert plan.model(f"stage:{stage}").name == str(tmp_path / place)
    assert not plan.stage("round-1/collect").makes_model
    assert round_policies(plan.config) == ["round-1/ppo_lag", "round-2/ppo_lag"]
    with pytest.raises(CastorError, match="cost is a stage of every round"):
        plan.stage("cost")


def test_policies_of_rounds_have_titles():
    titles = [policy_title(name) for name in ("sft", "round-2/ppo_lag", "round-1/mine", "other")]
    assert titles == ["SFT", "PPO-Lag round 2", "mine round 1", "other"]


RESPONSES = ["one", "two", " ", "one", "three", "two "]


def test_pairs_that_wait_are_different_and_without_labels():
    rows = unlabelled_pairs("p", RESPONSES, random.Random(0), 10)
    pairs = [frozenset((row["response_0"].strip(), row["response_1"].strip())) for row in rows]
    assert {frozenset(pair) for pair in pairs} == {
        frozenset(pair) for pair in (("one", "two"), ("one", "three"), ("two", "three"))
    }
    assert all(len(pair) == 2 for pair in pairs)
    assert all(row[label] is None for row in rows for label in LABELS)
    assert len(unlabelled_pairs("p", RESPONSES, random.Random(0), 2)) == 2
    assert unlabelled_pairs("p", ["same", "same"], random.Random(0), 2) == []


LABELLED = {
    "is_response_0_safe": True, "is_response_1_safe": False, "better_response_id": 1, "safer_response_id": 0,
}  # fmt: skip


def test_labelled_rows_are_read_back(tmp_path):
    queue, labelled = tmp_path / "queue.jsonl", tmp_path / "labelled.jsonl"
    waiting = unlabelled_pairs("p", RESPONSES, random.Random(0), 3)
    write_jsonl(queue, waiting)
    write_jsonl(labelled, [waiting[2] | LABELLED, waiting[0]])
    assert read_labelled(labelled, queue) == ([waiting[2] | LABELLED], 2)
    for rows, finding in [
        ([waiting[0] | LABELLED | {"safer_response_id": None}], "labelled.jsonl:1 has no safer_response_id"),
        ([waiting[0] | LABELLED] * 2, "labelled.jsonl:2 is no pair of .*queue.jsonl, or is there twice"),
        ([waiting[0] | LABELLED | {"safer_response_id": 1}], "labelled.jsonl:1: safer response is the unsafe one"),
        (waiting, "holds no labelled row"),
    ]:
        write_jsonl(labelled, rows)
        with pytest.raises(CastorError, match=finding):
            read_labelled(labelled, queue)


def test_a_stage_stops_until_its_queue_is_labelled(tmp_path):
    from trainers.collect import run_collect

    run = run_of(plan_of(f"run_dir={tmp_path}", "collect.annotator=queue"), "round-2/collect")
    files = run.files
    waiting = unlabelled_pairs("p", RESPONSES, random.Random(0), 3)
    write_jsonl(files.queue, waiting)
    write_json(files.queue_key, run.claim.inputs.key)  # sampled before: nothing is sampled again
    with pytest.raises(
        CastorError, match=r"round-2/collect: the pairs in .*queue\.jsonl wait .* save them as .*"
    ) as told:
        run_collect(run)
    assert "\n" not in str(told.value)
    assert str(files.labelled) in str(told.value)
    write_jsonl(files.labelled, [row | LABELLED for row in waiting[:2]])
    assert run_collect(run) == "2 labelled pairs, 1 of the queue without a label"
    assert [record.raw["safer_response_id"] for record in read_records(files.rows)] == [0, 0]
