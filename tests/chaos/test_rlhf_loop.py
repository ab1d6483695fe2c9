"""The RLHF loop with real engines: the numbers it logs, and what a dying rollout worker changes (nothing)."""

import math

import pytest
import ray

from actors.reservation import Reservation
from actors.rollout import RolloutWorker
from actors.signal import SignalModels
from castor.config.learner import Learner
from castor.config.multipliers import Multipliers
from castor.config.rlhf import RLHF
from castor.config.rollout import Rollout
from castor.config.signal import Signal
from castor.config.training import Engine, Optimizer
from castor.data.tokens.prompt_stream import PromptStream
from castor.model_reference import ModelReference
from tests.faults import Faults, mortal_while_loading
from tests.numerics import TINY_MODELS, tolerance
from tests.plans import actors_of
from trainers.rlhf.groups import Groups
from trainers.rlhf.loop import train
from trainers.rlhf.producer import Producer


def config(transfer="auto", **changes):
    engine = Engine(
        micro_batch_tokens=1024,
        pack_length=128,
        optimizer=Optimizer(lr=1e-3, lr_scheduler_type="constant", lr_warmup_ratio=0),
    )
    return RLHF(
        steps=3,
        prompts_per_step=8,
        samples_per_prompt=2,
        signals={
            "help": Signal(role="objective", model="reward", critic=engine),
            "harm": Signal(role="constraint", model="cost", threshold=-0.2, critic=engine),
        },
        multipliers=Multipliers(lambda_init=0.5, lambda_lr=0.5, episode_cost_window_size=16),
        rollout=Rollout(
            max_prompt_tokens=64,
            max_new_tokens=16,
            chunk_size=4,
            max_num_seqs=16,
            kv_cache_mib=64,
            transfer=transfer,
        ),
        learner=Learner(engine=engine, logprob_gap_alarm=1e-3),
        **changes,
    )


def run(models, prompts, folder, disturb, transfer="auto", **changes):
    results = []
    rlhf, text = config(transfer, **changes), ModelReference(models.policy)
    with Groups(
        rlhf,
        actors=actors_of(rlhf),
        reservation=Reservation(),
        policy=models.policy,
        signals={
            "help": SignalModels(models.reward, models.reward, text),
            "harm": SignalModels(models.cost, models.cost, text),
        },
        limits={"harm": -0.2},
        template="auto",
        seed=3,
        ptx_rows=None,
        multipliers_file=folder / "multipliers.json",
    ) as groups:

        def on_step(result):
            results.append(result)
            disturb(groups, result)

        train(rlhf, groups, Producer(rlhf, groups, PromptStream(prompts, 8, 3), 3, 1), on_step)
        restarts = groups.rollout.restarts
    return results, restarts


@pytest.fixture(scope="module")
def undisturbed(ray_session, tiny_models, tokenised_prompts, tmp_path_factory):
    results, restarts = run(
        tiny_models, tokenised_prompts, tmp_path_factory.mktemp("calm"), lambda groups, result: None
    )
    assert restarts == 0
    return results


def test_the_price_in_the_log_is_the_rule_applied_to_the_logged_costs(undisturbed):
    price = 0.5
    for number, result in enumerate(undisturbed, start=1):
        cost = result.metrics["harm/score_mean"]  # the window is exactly one step wide
        assert result.coefficients.mean_costs["harm"] == pytest.approx(cost, abs=tolerance(3.0, 16))  # 16 costs up to 3
        price *= math.exp(0.5 * price * (cost + 0.2))
        assert result.coefficients.version == result.step == number
        assert result.coefficients.multipliers["harm"] == pytest.approx(price, rel=1e-4)


def test_every_step_trains_on_fresh_weights_and_all_responses(undisturbed):
    for result in undisturbed:
        assert result.metrics["logprob_gap_mean"] < tolerance(6.0, TINY_MODELS)  # of log-probabilities of about -6
        assert result.metrics["response_tokens"] == pytest.approx(16 * result.metrics["response_length"])
    assert undisturbed[0].metrics["kl"] == pytest.approx(0.0, abs=1e-3)
    assert abs(undisturbed[2].metrics["kl"]) > 1e-3


def test_killing_the_rollout_worker_changes_nothing_but_the_time(
    undisturbed, ray_session, tiny_models, tokenised_prompts, tmp_path
):
    def kill_after_the_first_step(groups, result):
        if result.step == 1:
            ray.kill(groups.rollout.workers[0])

    disturbed, restarts = run(tiny_models, tokenised_prompts, tmp_path, kill_after_the_first_step)
    assert restarts == 1
    check_same_numbers(undisturbed, disturbed)


def test_broadcast_weights_and_a_worker_killed_while_it_loads_them_change_nothing_but_the_time(
    undisturbed, ray_session, tiny_models, tokenised_prompts, tmp_path, monkeypatch
):
    faults = Faults(tmp_path / "faults")
    worker = ray.remote(mortal_while_loading(RolloutWorker, faults))
    monkeypatch.setattr("actors.rollout_pool.FinishingWorker", worker)

    def arm_after_the_first_step(groups, result):
        if result.step == 1:
            assert groups.rollout.restarts == 0
            faults.arm(1, where="loading")

    disturbed, restarts = run(tiny_models, tokenised_prompts, tmp_path, arm_after_the_first_step, "gloo")
    assert (faults.struck(), restarts) == (1, 1)
    check_same_numbers(undisturbed, disturbed)


def check_same_numbers(undisturbed, disturbed):
    for calm, other in zip(undisturbed, disturbed, strict=True):
        assert other.coefficients.multipliers["harm"] == pytest.approx(calm.coefficients.multipliers["harm"], rel=1e-4)
        for name in ("actor_loss", "kl", "help/score_mean", "harm/score_mean", "tokens", "help/critic_loss"):
            assert other.metrics[name] == pytest.approx(calm.metrics[name], rel=1e-3, abs=1e-4), (other.step, name)


def test_turns_on_the_same_gpus_change_nothing_but_the_time(
    undisturbed, ray_session, tiny_models, tokenised_prompts, tmp_path
):
    """Real engines sleep, judges, critics and learner leave and come back; a worker dies while all of them are away."""
    phases = []

    def observe(groups, result):
        phases.append(groups.turns.phase)
        if result.step == 1:
            groups.turns.to("learner")  # the engines are asleep
            ray.kill(groups.rollout.workers[0])
            groups.turns.to("rollout")
            groups.rollout.load_weights(groups.rollout.update)

    shared, restarts = run(tiny_models, tokenised_prompts, tmp_path, observe, colocate=True)
    assert restarts == 1
    assert phases == ["rollout"] * 3
    for calm, other in zip(undisturbed, shared, strict=True):
        assert other.metrics["switch_s"] > 0
        assert "switch_s" not in calm.metrics
        assert other.coefficients.multipliers == calm.coefficients.multipliers
        numbers = {name: value for name, value in calm.metrics.items() if not name.endswith("_s")}
        assert {name: other.metrics[name] for name in numbers} == numbers
