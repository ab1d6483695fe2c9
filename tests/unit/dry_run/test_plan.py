import json
import subprocess
import sys
from pathlib import Path

import pytest

from castor.config.demo_model import DemoModel
from castor.config.load import load_config
from castor.config.model import Model
from castor.config.pipeline import Config
from castor.dry_run.describe import describe
from castor.dry_run.placement import placement, stored, totals
from castor.dry_run.shapes import measure
from castor.dry_run.text import WIDTH
from castor.io.errors import CastorError
from castor.run.check import check
from castor.run.plan import make_plan

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "configs" / "demo.yaml"
# 1024 words x 128, in and out; four layers of 4 x 128² attention, 3 x 128 x 344 MLP and 2 x 128 norms; the last norm
LAYER = 4 * 128**2 + 3 * 128 * 344 + 2 * 128
BACKBONE = 1024 * 128 + 4 * LAYER + 128
PARAMETERS = BACKBONE + 1024 * 128


def demo(*overrides):
    return make_plan(load_config(DEMO, overrides))


@pytest.fixture(scope="module")
def shape():
    return measure(demo().config.model)


def test_parameters_of_a_made_model_are_exact(shape):
    assert (shape.parameters, shape.backbone, shape.score) == (PARAMETERS, BACKBONE, BACKBONE + 129)
    assert (PARAMETERS, BACKBONE) == (1_053_824, 922_752)


def test_a_folder_is_measured_and_a_hub_id_is_unknown(tmp_path, shape):
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=1024, hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    tied = measure(str(tmp_path))
    assert tied.parameters == tied.backbone == BACKBONE
    assert measure("nobody-has/this-model") is None


def test_the_demo_starts_these_actors():
    stages = placement(demo())
    assert list(stages) == ["model", "sft", "collect", "reward", "cost", "ppo_lag", "ppo", "evaluate"]
    assert stages["model"] == []
    assert [(a.name, a.count) for a in stages["ppo_lag"]] == [
        ("rollout", 1), ("reference", 1), ("learner", 1), ("signal-helpfulness", 1), ("signal-harm", 1),
        ("MultiplierOwner", 1),
    ]  # fmt: skip
    assert [(a.name, a.count) for a in stages["evaluate"]] == [
        ("rollout", 1), ("reward-scorer", 1), ("cost-scorer", 1), ("FolderWeights", 1)
    ]  # fmt: skip
    reserved = {stage: totals(actors).cpus for stage, actors in stages.items()}
    assert (reserved["sft"], reserved["collect"], reserved["ppo_lag"], reserved["ppo"]) == (1, 0.5, 1.25, 1)


def test_a_policy_with_an_adapter_has_no_reference_and_few_optimizer_states(shape):
    full, adapted = (placement(demo(*more))["ppo_lag"] for more in ([], ["rlhf.ppo_lag.policy.lora.rank=4"]))
    assert [a.name for a in adapted] == [a.name for a in full if a.name != "reference"]
    (before,), (after,) = ([a for a in actors if a.name == "learner"] for actors in (full, adapted))
    assert after.work == f"policy, and the reference, {before.work.removeprefix('policy, ')}, LoRA of rank 4"
    factors = 4 * (4 * 2 * 128 + 3 * (128 + 344)) * 4  # four square projections and a gated MLP, four layers
    assert (before.memory.optimizer, after.memory.optimizer) == (12 * PARAMETERS, 12 * factors)
    assert (after.memory.gradients, after.memory.weights) == (4 * factors, 4 * (PARAMETERS + factors))
    text = describe(demo("rlhf.ppo_lag.policy.lora={}"))
    assert "LoRA of rank 16" in " ".join(text.split())
    with pytest.raises(CastorError, match="the learner computes the reference: remove the reference section"):
        demo("rlhf.ppo_lag.policy.lora.rank=4", "rlhf.ppo_lag.policy.reference.ranks=2")
    with pytest.raises(CastorError, match=r"lora\.rank 513: vLLM's kernels take at most 512"):
        demo("rlhf.ppo_lag.policy.lora.rank=513", "rlhf.ppo_lag.rollout.adapters=apart")
    demo("rlhf.ppo_lag.policy.lora.rank=513")  # on a CPU the engines sample from the sum


def test_the_text_holds_the_config_and_fits_its_width():
    text = describe(demo("ray.num_cpus=2", "rlhf.ppo_lag.multipliers.lambda_update_delay_steps=7"))
    config, plan = text.split("Stages, in order")
    assert ["rlhf.ppo_lag.multipliers.lambda_update_delay_steps", "7", "0"] in [
        line.split() for line in config.splitlines()
    ]
    assert "tensor_parallel_size" not in config
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "has 2; every stage fits (the largest reserves 1.25)" in plan
    assert "GPUs: none are needed." in plan
    full = describe(demo("rlhf.ppo_lag.multipliers.lambda_update_delay_steps=7"), full=True).split("Stages, in order")[
        0
    ]
    assert "lambda_update_delay_steps: 7" in full.split("Config, with every default")[1]
    assert "tensor_parallel_size: 1" in full
    crowded = describe(demo("ray.num_cpus=1", "sft.resources.custom={fast: 1}"))
    assert "TOO FEW for ppo_lag (1.25)" in crowded
    assert "fast 2, which a cluster started here does not" in crowded  # one of two workers each


def test_two_versions_of_the_weights_are_in_the_object_store():
    stores = {stage: stored(actors) for stage, actors in placement(demo()).items()}
    assert stores == dict.fromkeys(stores, 0.0) | {"ppo_lag": 2 * 4 * PARAMETERS, "ppo": 2 * 4 * PARAMETERS}
    wide = ["model.hidden_size=1024", "model.intermediate_size=4096"]  # 528 MiB: 80 % of 660
    assert "Weights on their way" not in describe(demo(*wide, "ray.object_store_mib=661"))
    told = " ".join(describe(demo(*wide, "ray.object_store_mib=659")).split())
    assert "take up to 528 MiB, and Ray moves to disk what fills more than 80% of its object store of 659 MiB" in told
    assert "give ray.object_store_mib at least 661." in told


def test_a_stage_that_is_too_large_for_this_machine_says_what_takes_less():
    huge = ["model.hidden_size=16384", "model.intermediate_size=65536", "model.layers=64"]
    told = " ".join(describe(demo(*huge)).split())
    assert "TOO MUCH for it: it has" in told
    assert "less is taken with a lower micro_batch_tokens" in told
    assert "Weights on their way to engines take up to" in told  # more than Ray's default is of any machine


def test_what_a_stage_starts_from():
    plan = demo()
    for reference in ("stage:model", "stage:cost", "stage:ppo_lag"):
        assert isinstance(plan.origin(reference), DemoModel)
    assert demo("sft.model=some/model").origin("stage:ppo") == Model(source="some/model")
    assert plan.policies == {"sft": "stage:sft", "ppo": "stage:ppo", "ppo_lag": "stage:ppo_lag"}
    assert list(demo("evaluate=null").stages)[-1] == "ppo"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.model=stage:sftt"], r"reward\.model: stage:sftt .* no section 'sftt'; did you mean stage:sft\?"),
        (["model=null"], r"sft\.model: stage:model .* no section 'model'"),
        (["collect=null"], r"reward\.data\.0\.source: stage:collect .*no section 'collect'"),
        (["sft.model=stage:ppo"], r"sft\.model: stage:ppo runs later"),
        (["rlhf.ppo.policy.model=stage:ppo"], r"in this very stage"),
        (["rlhf.ppo.signals.helpfulness.model=stage:cost"], r"needed reward model, got cost model"),
        (["collect.policy=stage:model", "sft.data.source=stage:model"], r"sft\.data.*needed rows, got language model"),
        (["sft.model=./no/such/folder"], r"sft\.model: there is no \./no/such/folder"),
        (["rlhf.ppo.prompts.source=nowhere.jsonl"], r"rlhf\.ppo\.prompts\.source: there is no nowhere\.jsonl"),
        (["rlhf.ppo.rollout.max_new_tokens=97"], r"rlhf\.ppo\.rollout: .* 64 \+ max_new_tokens 97 exceed .* 160"),
        (["sft.max_length=161"], r"sft\.max_length 161 exceeds the context of 160"),
        (["collect.rollout.tensor_parallel_size=2"], r"collect\.rollout: tensor_parallel_size 2 needs"),
        (["rlhf.ppo.prompts.limit=63"], r"rlhf\.ppo\.prompts\.limit 63 gives fewer prompts .* prompts_per_step 64"),
        (["sft.data.limit=31"], r"sft\.data gives at most 31 rows, fewer than one batch_size of 32"),
    ],
)
def test_contradictions_are_named(overrides, message):
    with pytest.raises(CastorError, match=message):
        check(demo(*overrides))


def test_limits_are_inclusive_and_the_context_of_a_folder_counts(tmp_path):
    check(demo("rlhf.ppo.rollout.max_new_tokens=96", "sft.max_length=160"))
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 100}))
    with pytest.raises(CastorError, match=r"context of 100"):
        check(demo(f"sft.model={tmp_path}"))


def test_every_finding_is_told_at_once_and_an_empty_comparison_is_one():
    with pytest.raises(CastorError) as error:
        check(demo("reward.model=stage:a", "cost.model=stage:b"))
    assert len(str(error.value).splitlines()) == 2
    with pytest.raises(CastorError, match="no policy to compare"):
        check(make_plan(Config.model_validate({"evaluate": {}})))


def test_a_dry_run_imports_neither_ray_nor_vllm_nor_deepspeed_and_check_no_torch():
    code = (
        "import sys; from pathlib import Path; from castor.config.load import load_config;"
        "from castor.run.check import check; from castor.run.plan import make_plan;"
        "plan = make_plan(load_config(Path(sys.argv[1]))); check(plan);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules;"
        "from castor.dry_run.describe import describe; describe(plan);"
        "assert not {'ray', 'vllm', 'deepspeed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(DEMO)], cwd=ROOT, check=True, timeout=300)


def test_whose_head_a_stage_starts_with_is_told():
    text = describe(
        demo("cost.model=stage:reward", "moderation.qa={model: stage:sft, max_length: 64, data: {source: synthetic}}")
    )
    stages = " ".join(text.split("Stages, in order")[1].split("Placement")[0].split())
    assert "cost model stage:reward (a fresh head: its own is of kind reward)" in stages
    assert "qa model stage:sft data" in stages
    again = " ".join(
        describe(
            demo("dpo={}", "moderation={a: {data: {}, max_length: 64}, b: {model: stage:a, data: {}, max_length: 64}}")
        ).split()
    )
    assert "b model stage:a (its head goes on)" in again
