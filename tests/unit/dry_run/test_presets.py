"""Every shipped config is one that runs: it loads, its plan is made, and the 8B ones fit their GPUs."""

from pathlib import Path

import pytest

from castor.config.cluster import Hardware
from castor.config.load import load_config
from castor.config.training import Resources
from castor.dry_run.describe import describe
from castor.dry_run.gpus import stage_gpus
from castor.dry_run.memory import FRAGMENTATION, Memory
from castor.dry_run.placement import PlacedActors, placement
from castor.dry_run.text import WIDTH
from castor.io.errors import CastorError
from castor.run.actors import Actors
from castor.run.bundles import make_bundles
from castor.run.check import check
from castor.run.plan import make_plan

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in ("parts", "serve"))
PRESETS = [
    *("ppo", "ppo_lag", "ppo_lag_paper_v1", "ppo_lag_paper_v2", "ppo_lag_paper_v3", "reward_shaping"),
    *("single_preference", "hh_ppo", "classifier_max", "classifier_mean", "pid_lag", "repo_rectified"),
    *("grpo_lag", "rloo_lag", "multi_constraint"),
]
TWO_NODES, COLOCATED = (str(CONFIGS / "llama-8b" / "parts" / f"{name}.yaml") for name in ("two_nodes", "colocated"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS).with_suffix("")))
def test_every_config_has_a_plan(file):
    config = load_config(file)
    plan = make_plan(config)
    check(plan)
    assert placement(plan)


@pytest.mark.parametrize(
    ("nodes", "overrides"), [(1, []), (2, [TWO_NODES]), (1, [COLOCATED])], ids=["one node", "two nodes", "colocated"]
)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_8b_presets_fit_eight_gpus_of_80_gb_a_node(preset, nodes, overrides):
    config = load_config(CONFIGS / "llama-8b" / f"{preset}.yaml", overrides)
    hardware = config.ray.hardware
    assert (hardware.nodes, hardware.gpus_per_node) == (nodes, 8)
    plan = make_plan(config)
    for stage, actors in placement(plan).items():
        gpus = stage_gpus(plan.bundles(plan.stages[stage]), actors, hardware)
        assert gpus.fits, gpus.verdict(stage)
        assert all(gpu.used is not None for gpu in gpus.gpus), stage


def described(file, *overrides):
    return describe(make_plan(load_config(file, overrides)))


def test_a_dry_run_says_what_each_gpu_holds():
    text = described(CONFIGS / "llama-8b" / "ppo_lag.yaml")
    gpus = text.split("GPU memory on 1 x 8 GPUs of 79 GiB")[1]
    assert "ppo_lag: fits" in gpus
    assert max(map(len, gpus.splitlines())) <= WIDTH
    reserved = text.split("GPUs: each line is reserved on one node")[1].split("GPU memory on")[0]
    assert "reference-0, learner-0" in reserved
    assert "signal-harm-0, signal-harm-1" in reserved
    with pytest.raises(CastorError, match=r"ppo_lag asks for 8 GPUs \(.*\), and ray\.hardware has 1 x 4"):
        described(CONFIGS / "llama-8b" / "ppo_lag.yaml", "ray.hardware.gpus_per_node=4")
    small = described(CONFIGS / "llama-8b" / "ppo_lag.yaml", "ray.hardware.gpu_memory_gib=40")
    assert "ppo_lag: TOO MUCH" in small
    assert "ppo_lag: learner holds about" in " ".join(small.split())


def test_groups_that_take_turns_share_every_gpu_and_wait_on_the_host():
    plan = make_plan(load_config(CONFIGS / "llama-8b" / "ppo_lag.yaml", [COLOCATED]))
    signals = [f"signal-{name}-{rank}" for name in ("helpfulness", "harm") for rank in range(4)]
    bundles = plan.bundles(plan.stages["ppo_lag"])
    assert [bundle.members for bundle in bundles] == [
        (f"rollout-{rank}", f"reference-{rank}", f"learner-{rank}", signals[rank]) for rank in range(8)
    ]
    assert sum(bundle.cpus for bundle in bundles) <= 96  # of p4de.24xlarge
    placed = {actors.name: actors for actors in placement(plan)["ppo_lag"]}
    critic = placed["signal-harm"]
    judge, trained = (critic.phases[phase] for phase in ("judging", "critics"))
    waits = judge.frozen + trained.weights + trained.gradients + trained.optimizer
    assert critic.memory.host == critic.memory.process + waits


@pytest.mark.parametrize(("nodes", "overrides"), [(2, []), (8, [str(CONFIGS / "llama-70b/parts/eight_nodes.yaml")])])
def test_the_70b_preset_fits_two_nodes_and_eight(nodes, overrides):
    file = CONFIGS / "llama-70b" / "ppo_lag.yaml"
    config = load_config(file, overrides)
    assert (config.ray.hardware.nodes, config.ray.hardware.gpus_per_node) == (nodes, 8)
    text = described(file, *overrides)
    for stage in ("reward", "cost", "ppo_lag", "evaluate"):
        assert f"{stage}: fits, " in text
    assert "not counted" not in text
    run = config.rlhf["ppo_lag"]
    assert run.rollout.tensor_parallel_size == run.rollout.resources.gpus == 4
    assert run.policy.lora is not None


def test_one_critic_takes_the_gpus_left_over_on_two_nodes():
    described(CONFIGS / "llama-8b" / "ppo.yaml", TWO_NODES, "rlhf.ppo.signals.helpfulness.ranks=8")


def test_presets_take_the_same_number_of_responses():
    runs = [load_config(CONFIGS / f"{preset}.yaml").rlhf[preset] for preset in PRESETS]
    assert {run.steps * run.prompts_per_step * run.samples_per_prompt for run in runs} == {80 * 64}


def test_presets_hold_the_values_of_their_sources():
    def run(preset):
        return load_config(CONFIGS / f"{preset}.yaml").rlhf[preset]

    def cluster_run(preset):
        return load_config(CONFIGS / "llama-8b" / f"{preset}.yaml").rlhf[preset]

    lag = run("ppo_lag")
    rule, advantage, learner = lag.multiplier("harm"), lag.advantage, lag.learner
    assert (rule.rule, rule.lambda_init, rule.lambda_lr, rule.lambda_max) == ("sgd_log", 1.0, 0.1, 5.0)
    assert (rule.lambda_update_delay_steps, rule.episode_cost_window_size) == (0, 128)
    assert (advantage.gamma, advantage.gae_lambda, advantage.kl_coeff) == (1.0, 0.95, 0.02)
    assert (advantage.clip_range_score, advantage.clip_range_value, advantage.whiten) == (50.0, 5.0, False)
    assert (learner.clip_range_ratio, learner.update_iters) == (0.2, 1)
    assert cluster_run("ppo_lag").learner.ptx.ptx_coeff == 32 * learner.ptx.ptx_coeff == 16.0
    papers = [run(f"ppo_lag_paper_v{number}") for number in (1, 2, 3)]
    rules = [paper.multiplier("harm") for paper in papers]
    assert [(rule.lambda_init, rule.lambda_lr) for rule in rules] == [(1.0, 0.01), (0.5, 0.04), (1.0, 0.04)]
    large = [cluster_run(f"ppo_lag_paper_v{n}") for n in (1, 2, 3)]
    assert [paper.learner.ptx.ptx_coeff for paper in large] == [8.0, 2.0, 1.0]
    assert [32 * paper.learner.ptx.ptx_coeff for paper in papers] == [8.0, 2.0, 1.0]
    assert [paper.signals["harm"].threshold for paper in large] == [0.0, -3.0, -3.0]
    cluster = [load_config(CONFIGS / "llama-8b" / f"ppo_lag_paper_v{n}.yaml") for n in (1, 2, 3)]
    assert {config.cost.normalize for config in cluster} == {"none"}
    assert not run("grpo_lag").has_critic("harm")
    assert not run("ppo").constraints


def test_each_gpu_holds_what_its_bundle_says():
    def actors(name, count, gpus, held):
        memory = Memory(process=0, weights=held, on_gpu=True)
        resources = Resources(gpus=gpus)
        return Actors(name, count, resources, ""), PlacedActors(name, count, resources, "", memory, None)

    pairs = [actors("rollout", 2, 0.65, 40), actors("reference", 2, 0.35, 16), actors("wide", 1, 2, 70)]
    asked, placed = zip(*pairs, strict=True)
    for nodes, unplaced in ((2, []), (1, ["rollout", "reference"] * 2)):
        hardware = Hardware(nodes=nodes, gpus_per_node=2, gpu_memory_gib=1)
        found = stage_gpus(make_bundles(asked, 2), placed, hardware)
        shared, alone = (("rollout", "reference"), 56 * FRAGMENTATION), (("wide",), 70 * FRAGMENTATION)
        assert [(gpu.actors, pytest.approx(gpu.used)) for gpu in found.gpus] == [alone, alone, shared, shared][
            : 2 * nodes
        ]
        assert found.unplaced == unplaced
        assert found.fits == (not unplaced)
    assert found.verdict("run") == "run: TOO FEW GPUs for rollout, reference."


def test_a_moderation_model_can_judge_the_comparison_too():
    overrides = ["evaluate.cost=stage:qa", "evaluate.cost_classifier={reduce: mean}"]
    check(make_plan(load_config(CONFIGS / "classifier_mean.yaml", overrides)))
    with pytest.raises(CastorError, match=r"evaluate\.cost: stage:qa"):
        check(make_plan(load_config(CONFIGS / "classifier_mean.yaml", overrides[:1])))
