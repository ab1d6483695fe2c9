"""Overlapped rollout and learning with real engines: versions, log-probabilities, weights in mid-response, death."""

import pytest
import ray
import torch

from actors.folder_weights import FolderWeights
from actors.group import get
from actors.reservation import Reservation
from actors.rollout import PromptRequest
from actors.signal import SignalModels
from actors.step_batch import StepBatch
from castor.config.learner import Learner
from castor.config.rlhf import RLHF
from castor.config.rollout import Rollout
from castor.config.signal import Signal
from castor.config.training import Engine, Optimizer
from castor.data.tokens.prompt_stream import PromptStream
from castor.experience import Experience
from castor.model_reference import ModelReference
from castor.models.policy import PolicyModel
from engines.batch import make_micro_batch
from engines.weights.host import read_bucket
from tests.numerics import TINY_MODELS, assert_close, tolerance
from tests.plans import actors_of
from trainers.rlhf.groups import Groups
from trainers.rlhf.loop import train
from trainers.rlhf.producer import Producer, sample_requests

SEED = 3


def config(max_staleness, on_new_weights="finish", transfer="auto"):
    engine = Engine(
        micro_batch_tokens=2048,
        pack_length=128,
        optimizer=Optimizer(lr=3e-3, lr_scheduler_type="constant", lr_warmup_ratio=0),
    )
    return RLHF(
        steps=4,
        prompts_per_step=12,
        signals={"help": Signal(role="objective", model="reward", critic=engine)},
        rollout=Rollout(
            max_prompt_tokens=64, max_new_tokens=48, chunk_size=2, max_num_seqs=4, kv_cache_mib=64,
            max_staleness=max_staleness, on_new_weights=on_new_weights, transfer=transfer,
        ),
        learner=Learner(engine=engine, logprob_gap_alarm=1e-3),
    )  # fmt: skip


def reward(models):
    return SignalModels(models.reward, models.reward, ModelReference(models.policy))


@pytest.fixture(scope="module")
def groups(ray_session, tiny_models, tmp_path_factory):
    """Workers of the continuing kind, which in `finish` are sent their weights in turn like everything else."""
    rlhf = config(1, "continue")
    with Groups(
        rlhf, actors=actors_of(rlhf), reservation=Reservation(), policy=tiny_models.policy,
        signals={"help": reward(tiny_models)}, limits={}, template="auto", seed=SEED, ptx_rows=None,
        multipliers_file=tmp_path_factory.mktemp("state") / "multipliers.json",
    ) as groups:  # fmt: skip
        yield groups


def overlapping(rlhf, groups, prompts, on_step):
    """The loop of the product."""
    train(rlhf, groups, Producer(rlhf, groups, prompts, SEED, 1), on_step)


class Run:
    """Everything one run of the loop saw: results, batches by step, weights by version."""

    def __init__(self, groups, models, prompts, rlhf, loop=overlapping, disturb=lambda groups, result: None):
        loading = groups.learner.call("load", models.policy, rlhf, SEED, "auto", None)
        get([*loading, *groups.signals["help"].call("load", "help", reward(models), rlhf, SEED)], 300, "load")
        pool, call = groups.rollout, groups.learner.call
        pool.config = rlhf.rollout
        source = FolderWeights.remote()  # what it publishes is there as long as it is
        pool.load_weights(get(source.publish.remote(models.policy, 0), 120, "publish"))
        self.results, self.batches, self.updates = [], {}, {}
        self.restarts = -pool.restarts

        def record(method, *args):
            refs = call(method, *args)
            if method == "step":
                self.batches[args[0]] = args[1]
            if method == "publish":
                self.updates[args[0]] = refs[0]
            return refs

        def on_step(result):
            self.results.append(result)
            disturb(groups, result)

        groups.learner.call = record
        try:
            loop(rlhf, groups, PromptStream(prompts, rlhf.prompts_per_step, SEED), on_step)
        finally:
            groups.learner.call = call
        self.restarts += pool.restarts
        self.updates = {version: get(ref, 60, "update") for version, ref in self.updates.items()}

    def experience(self, step):
        return Experience.concatenate(ray.get(self.batches[step].experience))


def policy_of(models, update):
    """The policy with the weights of an update; None: as it started."""
    policy = PolicyModel.load(models.policy, torch.float32).eval()
    if update is not None:
        for bucket in ray.get(update.pieces):
            policy.lm.load_state_dict(dict(read_bucket(bucket)), strict=False)
    return policy


def check_tokens(models, updates, experience):
    """Every token's log-probability is that of the weights of its own version, and of no other."""
    micro = make_micro_batch(experience, torch.arange(len(experience)).numpy(), {}, 512, torch.device("cpu"))
    versions, sampled = torch.from_numpy(experience.versions.copy()), micro.columns["logprobs"]
    for version in versions.unique().tolist():
        with torch.no_grad():
            exact = policy_of(models, updates.get(version))(micro.rows, micro.response_positions)
        gap, own = (exact - sampled).abs(), versions == version
        assert_close(exact[own], sampled[own], TINY_MODELS)
        if not own.all():
            assert gap[~own].mean() > 1e-3


def turn_by_turn(rlhf, groups, prompts, on_step):
    """The on-policy algorithm without a producer: sample everything, score it, learn, hand the weights on."""
    for step in range(1, rlhf.steps + 1):
        requests = sample_requests(prompts.next_batch(), rlhf.samples_per_prompt, SEED, step)
        chunks = sorted(groups.rollout.generate(requests), key=lambda chunk: min(chunk.info.uids))
        experience = [chunk.experience for chunk in chunks]
        reference = [groups.reference.handles[0].logprobs.remote(ref) for ref in experience]
        judge = groups.signals["help"]
        batch = StepBatch(experience, reference, {"help": [judge.handles[0].score.remote(ref) for ref in experience]})
        learning = groups.learner.call("step", step, batch, {"help": judge.call("advantages", batch, None)[0]}, None)
        fitted = get(judge.call("train_critic", step), 120, "critic")[0]
        on_step({**get(learning, 120, "learner")[0], **{f"help/{key}": value for key, value in fitted.items()}})
        groups.rollout.load_weights(get(groups.learner.call("publish", step), 120, "publish")[0])


def test_a_staleness_of_zero_is_the_on_policy_loop_bit_for_bit(groups, tiny_models, tokenised_prompts):
    rlhf = config(0).model_copy(update={"steps": 2})
    ours, plain = (Run(groups, tiny_models, tokenised_prompts, rlhf, loop) for loop in (overlapping, turn_by_turn))
    assert [update.digest for update in ours.updates.values()] == [update.digest for update in plain.updates.values()]
    for result, metrics in zip(ours.results, plain.results, strict=True):
        assert {key: result.metrics[key] for key in metrics} == metrics
        assert not {"staleness_mean", "importance_mean", "learner_waited_s"} & result.metrics.keys()


@pytest.fixture(scope="module")
def finished(groups, tiny_models, tokenised_prompts):
    return Run(groups, tiny_models, tokenised_prompts, config(1))


def test_finishing_responses_are_exactly_one_version_behind(finished, tiny_models):
    for result in finished.results:
        step, experience, metrics = result.step, finished.experience(result.step), result.metrics
        assert sorted(experience.uids.tolist()) == list(range(12))
        assert set(experience.versions.tolist()) == {max(step - 2, 0)}
        check_tokens(tiny_models, finished.updates, experience)
        assert metrics["staleness_mean"] == metrics["staleness_max"] == min(step - 1, 1)
        assert metrics["dropped_overdue"] == 0
        assert 0 <= metrics["learner_waited_s"] <= metrics["rollout_s"]
        assert metrics["rollout_waited_s"] >= 0
    first, *later = (result.metrics for result in finished.results)
    assert first["logprob_gap_mean"] < tolerance(6.0, TINY_MODELS)  # log-probabilities of about -6
    assert first["importance_mean"] == pytest.approx(1.0, abs=tolerance(6.0, TINY_MODELS))
    assert all("logprob_gap_mean" not in metrics for metrics in later)  # nothing of the current version to measure
    assert all(metrics["importance_max"] > 1.001 for metrics in later)


def test_overlapped_runs_with_finishing_responses_are_reproducible(finished, groups, tiny_models, tokenised_prompts):
    again = Run(groups, tiny_models, tokenised_prompts, config(1))
    assert [update.digest for update in again.updates.values()] == [u.digest for u in finished.updates.values()]


def drain(pool, job, on_chunk=lambda number: None):
    """All chunks of a job; `on_chunk` is told of each, by its number from 1 on."""
    chunks = []
    while job.unfinished:
        arrived = pool.wait()
        if arrived is not None:
            chunks.append(arrived[1])
            on_chunk(len(chunks))
    parts = [ray.get(chunk.experience) for chunk in chunks]
    for chunk, part in zip(chunks, parts, strict=True):
        assert (chunk.info.oldest, chunk.info.newest) == (part.versions.min(), part.versions.max())
    return Experience.concatenate(parts)


def test_weights_that_arrive_in_mid_response_are_used_from_the_next_token_on(
    groups, finished, tiny_models, tokenised_prompts
):
    pool = groups.rollout
    pool.config = config(1, "continue").rollout
    pool.load_weights(finished.updates[1])
    count = 96  # four at a time: the weights need a small part of the time that remains after the first chunks
    job = pool.submit([PromptRequest(uid, tokenised_prompts[uid], uid) for uid in range(count)])
    # responses of one length end together, and weights may arrive just then: not three times
    arriving = {1: finished.updates[2], 4: finished.updates[3], 7: finished.updates[4]}
    experience = drain(pool, job, lambda number: pool.load_weights(arriving[number]) if number in arriving else None)
    assert sorted(experience.uids.tolist()) == list(range(count))
    assert {1, 4} <= set(experience.versions.tolist()) <= {1, 2, 3, 4}
    assert any(len(set(experience.select([i]).versions.tolist())) > 1 for i in range(count))
    check_tokens(tiny_models, finished.updates, experience)


def test_responses_of_a_worker_that_lags_are_sampled_again(groups, finished, tiny_models, tokenised_prompts):
    pool = groups.rollout
    pool.config = config(1).rollout
    pool.load_weights(finished.updates[3])
    get(pool.workers[0].load_weights.remote(finished.updates[1]), 60, "behind the pool's back")
    job = pool.submit([PromptRequest(uid, tokenised_prompts[uid], uid) for uid in range(6)], oldest=2)
    experience = drain(pool, job)
    assert sorted(experience.uids.tolist()) == list(range(6))
    assert set(experience.versions.tolist()) == {3}
    assert job.overdue == 6
    check_tokens(tiny_models, finished.updates, experience)


def test_continuing_responses_stay_within_the_bound_although_the_worker_dies(groups, tiny_models, tokenised_prompts):
    def kill_after_the_first_step(groups, result):
        if result.step == 1:
            ray.kill(groups.rollout.workers[0])

    rlhf = config(1, "continue")
    run = Run(groups, tiny_models, tokenised_prompts, rlhf, disturb=kill_after_the_first_step)
    assert run.restarts == 1
    assert len(run.results) == rlhf.steps
    for result in run.results:
        experience = run.experience(result.step)
        assert sorted(experience.uids.tolist()) == list(range(12))
        staleness = result.step - 1 - experience.versions
        assert staleness.min() >= 0
        assert staleness.max() <= 1
        assert result.metrics["staleness_mean"] == pytest.approx(staleness.mean())
        check_tokens(tiny_models, run.updates, experience)


def test_weights_are_broadcast_to_engines_in_mid_response(groups, tiny_models, tokenised_prompts):
    rlhf = config(1, "continue", "gloo")
    run = Run(groups, tiny_models, tokenised_prompts, rlhf)
    assert (run.restarts, len(run.results)) == (0, rlhf.steps)
    assert all(update.transport == "gloo" and update.lost is None for update in run.updates.values())
    for result in run.results:
        experience = run.experience(result.step)
        assert sorted(experience.uids.tolist()) == list(range(12))
        staleness = result.step - 1 - experience.versions
        assert 0 <= staleness.min() <= staleness.max() <= 1
    assert len({version for step in (2, 3, 4) for version in run.experience(step).versions.tolist()}) > 1
