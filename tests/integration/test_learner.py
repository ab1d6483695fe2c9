"""The learner against plain PyTorch, on one and two ranks and every ZeRO stage; the multiplier owner; signals."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import ray
import torch

from actors.group import get
from actors.learner import LearnerWorker
from actors.multipliers import Coefficients, MultiplierOwner
from actors.signal import SignalModels, SignalWorker
from actors.step_batch import StepBatch
from castor.algorithms.advantages import combine
from castor.algorithms.losses import clipped_policy_loss
from castor.config.learner import Learner
from castor.config.multipliers import Multipliers
from castor.config.rlhf import RLHF
from castor.config.signal import Signal
from castor.config.training import Engine, Optimizer
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.experience import Experience
from castor.model_reference import ModelReference
from castor.models.policy import PolicyModel
from castor.packing import pack_rows
from tests.numerics import TINY_MODELS, assert_close, tolerance
from tests.plans import spmd_group

LR = 1e-2
ROUNDING = tolerance(3.0, TINY_MODELS)  # of a mean of terms that are about 3 and less
LOGPROBS = tolerance(8.0, TINY_MODELS)  # of log-probabilities, which are above -8, and relative of their ratios


def rlhf_config(ranks, zero_stage, run=None, **learner):
    engine = Engine(
        zero_stage=zero_stage,
        micro_batch_tokens=120,
        pack_length=64,
        optimizer=Optimizer(lr=LR, lr_scheduler_type="constant", lr_warmup_ratio=0, max_grad_norm=0.5),
    )
    return RLHF(
        steps=3,
        prompts_per_step=12,
        signals={
            "help": Signal(role="objective", model="unused", critic=engine),
            "harm": Signal(role="constraint", model="unused", threshold=0.0, critic=engine),
        },
        learner=Learner(ranks=ranks, engine=engine, logprob_gap_alarm=1e9, **learner),
        **{"multipliers": Multipliers(), **(run or {})},
    )


@pytest.fixture(scope="module")
def step_data(tiny_models, prompts):
    """Twelve made-up responses in two chunks, with reference log-probs, scores and advantages."""
    rng = np.random.default_rng(0)
    template = PromptTemplate(load_tokenizer(tiny_models.policy))
    heads = [template.encode_prompt(prompt) for prompt in prompts[:12]]
    lengths = rng.integers(1, 20, 12)
    tokens = [np.array([*head, *rng.integers(5, 300, n)], np.int32) for head, n in zip(heads, lengths, strict=True)]
    total = int(lengths.sum())
    experience = Experience(
        uids=np.arange(12),
        prompts=tuple(prompts[:12]),
        tokens=np.concatenate(tokens),
        prompt_lengths=np.array([len(head) for head in heads], np.int32),
        response_lengths=lengths.astype(np.int32),
        logprobs=rng.normal(-6.6, 0.3, total).astype(np.float32),
        versions=np.zeros(total, np.int32),
        truncated=np.zeros(12, bool),
    )
    advantages = {name: rng.normal(size=total).astype(np.float32) for name in ("help", "harm")}
    return experience, rng.normal(-6.6, 0.3, total).astype(np.float32), advantages


def cost_models(models):
    return SignalModels(models.cost, models.cost, ModelReference(models.policy))


def as_batch(experience, reference):
    cut = int(experience.response_lengths[:7].sum())
    chunks = [experience.select(range(7)), experience.select(range(7, 12))]
    scores = [np.linspace(-1, 1, 7, dtype=np.float32), np.linspace(-2, 2, 5, dtype=np.float32)]
    return StepBatch(
        [ray.put(chunk) for chunk in chunks],
        [ray.put(reference[:cut]), ray.put(reference[cut:])],
        {name: [ray.put(part) for part in scores] for name in ("help", "harm")},
    )


def ppo_loss(policy, rows, positions, old, advantages, reference):
    return clipped_policy_loss(policy(rows, positions), old, advantages, 0.2)


def decoupled_loss(cap):
    """The loss around the log-probabilities of the first pass, and the list they are put into, one entry a sequence."""
    before, calls = [], count()

    def loss(policy, rows, positions, sampled, advantage, logp_ref):
        new = policy(rows, positions)
        if len(before) < 12:
            before.append(new.detach())
        old = before[next(calls) % 12]
        return torch.exp(old - sampled).clamp(max=cap) * clipped_policy_loss(new, old, advantage, 0.2)

    return loss, before


def plain_step(model, experience, advantages, lam, reference=None, loss_of=ppo_loss, passes=1, trained=""):
    """The same updates in some lines of PyTorch: whole sequences one by one, no packing, no DeepSpeed. Only parameters
    with `trained` in their names are.

    Means of loss and gradient norm over the passes, and the weights after them.
    """
    policy = PolicyModel.load(model, torch.float32)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(trained in name)
    decay = [p for p in policy.parameters() if p.ndim >= 2]
    rest = [p for p in policy.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decay}, {"params": rest}], lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    stream = {name: torch.from_numpy(a) for name, a in advantages.items()}
    combined = combine({"help": stream["help"]}, {"help": 1.0}, {"harm": stream["harm"]}, {"harm": lam})
    ends = np.cumsum(experience.response_lengths)
    losses, norms = [], []
    for _ in range(passes):
        loss = torch.zeros(())
        for i in range(len(experience)):
            one = experience.select([i])
            rows = pack_rows(one.tokens, one.lengths, 512)
            positions = torch.arange(int(one.prompt_lengths[0]), int(one.lengths[0]))
            span = slice(int(ends[i] - experience.response_lengths[i]), int(ends[i]))
            old = torch.from_numpy(one.logprobs.copy())
            per_token = loss_of(
                policy, rows, positions, old, combined[span], None if reference is None else reference[span]
            )
            loss = loss + per_token.mean() / len(experience)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)))
        optimizer.step()
        losses.append(float(loss.detach()))
    weights = {k.removeprefix("lm."): p.detach() for k, p in policy.named_parameters()}
    return float(np.mean(losses)), float(np.mean(norms)), weights


def learner_step(group, model, config, batch, advantages, lam, step=1):
    get(group.call("load", model, config, 0, "auto", None), 300, "load")
    coefficients = Coefficients(1, {"harm": lam}, {"harm": 0.0})
    refs = {name: ray.put(a) for name, a in advantages.items()}
    metrics = get(group.call("step", step, batch, refs, coefficients), 300, "step")[0]
    update = get(group.call("publish", 1), 300, "publish")[0]
    weights = {}
    for bucket in ray.get(update.pieces):
        for name, (raw, dtype, shape) in bucket.items():
            weights[name] = torch.frombuffer(bytearray(raw), dtype=getattr(torch, dtype)).view(shape)
    return metrics, weights


def check_update(weights, expected):
    """The weights after one step. Adam's first is lr * sign-like: where a gradient is about 0, its sign is noise."""
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (weights[name] - tensor).abs().max() < 2.1 * LR
        assert ((weights[name] - tensor).abs() < 1e-4).float().mean() > 0.99, name


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def learners(request, ray_session):
    group = spmd_group("learner", LearnerWorker, request.param)
    group.join(120)
    yield group
    group.stop()


def test_a_step_is_the_plain_pytorch_step_on_every_zero_stage(learners, tiny_models, step_data):
    experience, reference, advantages = step_data
    batch = as_batch(experience, reference)
    loss, norm, expected = plain_step(tiny_models.policy, experience, advantages, 0.7)
    for stage in (0, 2, 3):
        config = rlhf_config(len(learners.handles), stage)
        metrics, weights = learner_step(learners, tiny_models.policy, config, batch, advantages, 0.7)
        assert metrics["actor_loss"] == pytest.approx(loss, abs=ROUNDING), stage
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3), stage
        assert metrics["bounded_log_ratios"] == 0
        kl = (experience.logprobs - reference).sum() / 12
        assert metrics["kl"] == pytest.approx(kl, rel=1e-4)
        check_update(weights, expected)


def test_logits_a_few_tokens_at_a_time_give_the_same_step_on_every_zero_stage(learners, tiny_models, step_data):
    """Two ranks have different numbers of chunks, and gather the shards of the output layer equally often."""
    experience, reference, advantages = step_data

    def with_entropy(policy, rows, positions, old, advantage, logp_ref):
        new, entropy = policy(rows, positions, 1.0, True)
        return clipped_policy_loss(new, old, advantage, 0.2) - 0.05 * entropy

    batch = as_batch(experience, reference)
    loss, norm, expected = plain_step(tiny_models.policy, experience, advantages, 0.7, loss_of=with_entropy)
    for stage in range(4):
        config = rlhf_config(len(learners.handles), stage, entropy_coeff=0.05)
        engine = config.learner.engine.model_copy(update={"logits_chunk_tokens": 5})
        config = config.model_copy(update={"learner": config.learner.model_copy(update={"engine": engine})})
        metrics, weights = learner_step(learners, tiny_models.policy, config, batch, advantages, 0.7)
        assert metrics["actor_loss"] - 0.05 * metrics["entropy"] == pytest.approx(loss, abs=ROUNDING), stage
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3), stage
        check_update(weights, expected)


def test_the_last_layers_take_the_plain_step_on_every_zero_stage(learners, tiny_models, step_data):
    experience, reference, advantages = step_data
    batch, last = as_batch(experience, reference), "model.layers.1."
    before = dict(PolicyModel.load(tiny_models.policy, torch.float32).named_parameters())
    loss, _, expected = plain_step(tiny_models.policy, experience, advantages, 0.7, trained=last)
    for stage in range(4):
        config = rlhf_config(len(learners.handles), stage)
        engine = config.learner.engine.model_copy(update={"trained_layers": 1})
        config = config.model_copy(update={"learner": config.learner.model_copy(update={"engine": engine})})
        metrics, weights = learner_step(learners, tiny_models.policy, config, batch, advantages, 0.7)
        assert metrics["actor_loss"] == pytest.approx(loss, abs=ROUNDING), stage
        # the norm behind the layers is trained, too, and the gradient's norm a bit larger for it
        check_update({k: v for k, v in weights.items() if last in k}, {k: v for k, v in expected.items() if last in k})
        for name, tensor in weights.items():
            if last not in name and "model.norm" not in name:
                assert torch.equal(tensor, before[f"lm.{name}"]), name


def test_mini_batches_and_passes_update_more_than_once(learners, tiny_models, step_data):
    experience, reference, advantages = step_data
    config = rlhf_config(len(learners.handles), 2, mini_batches=2, update_iters=2)
    metrics, _ = learner_step(learners, tiny_models.policy, config, as_batch(experience, reference), advantages, 0.7)
    assert metrics["clip_fraction"] > 0  # later updates see a policy that has moved away from the rollout's


def test_every_term_of_the_loss_is_in_the_step(learners, tiny_models, step_data):
    """Asymmetric and dual clip, KL and entropy in the loss: the norm of the gradient is that of their written sum."""
    experience, reference, advantages = step_data

    def every_term(policy, rows, positions, old, advantage, logp_ref):
        new, entropy = policy(rows, positions, 1.0, True)
        ratio = torch.exp(new - old)
        loss = -torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.3) * advantage)
        loss = torch.where(advantage < 0, torch.minimum(loss, -1.2 * advantage), loss)
        return loss + 0.4 * (torch.exp(logp_ref - new) - (logp_ref - new) - 1) - 0.05 * entropy

    plain = plain_step(tiny_models.policy, experience, advantages, 0.7, torch.from_numpy(reference), loss_of=every_term)
    config = rlhf_config(
        len(learners.handles), 2, {"advantage": {"kl_placement": "loss", "kl_coeff": 0.4}},
        clip_range_low=0.1, clip_range_high=0.3, dual_clip=1.2, entropy_coeff=0.05,
    )  # fmt: skip
    metrics, _ = learner_step(learners, tiny_models.policy, config, as_batch(experience, reference), advantages, 0.7)
    total = metrics["actor_loss"] + 0.4 * metrics["kl_loss"] - 0.05 * metrics["entropy"]
    assert total == pytest.approx(plain[0], abs=ROUNDING)
    assert metrics["grad_norm"] == pytest.approx(plain[1], rel=1e-3)
    kl, responses = get(learners.handles[0].measure_kl.remote(as_batch(experience, reference)), 120, "measure_kl")
    assert (kl, responses) == (pytest.approx(metrics["kl"]), 12)


def test_log_ratios_of_95_are_bounded_and_counted_and_the_run_goes_on(learners, tiny_models, step_data):
    """Of one token to its rollout, with a negative advantage, and of another one to its reference."""
    experience, reference, advantages = step_data
    logprobs, reference, helpful = experience.logprobs.copy(), reference.copy(), advantages["help"].copy()
    logprobs[3], helpful[3], reference[5] = -101.0, -9.0, 89.0
    batch = as_batch(replace(experience, logprobs=logprobs), reference)
    config = rlhf_config(len(learners.handles), 2, {"advantage": {"kl_placement": "loss", "kl_coeff": 0.4}})
    metrics, weights = learner_step(learners, tiny_models.policy, config, batch, advantages | {"help": helpful}, 0.7)
    assert metrics["bounded_log_ratios"] == 2
    assert np.isfinite(list(metrics.values())).all()
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize("mini_batches", [1, 2])
def test_stale_tokens_are_weighted_by_truncated_importance(learners, tiny_models, step_data, mini_batches):
    """Against the decoupled loss in plain PyTorch, whose proximal policy is the one before the step."""
    experience, reference, advantages = step_data
    versions = (np.arange(len(experience.versions)) % 3 > 0).astype(np.int32)  # step 2 updates version 1
    stale = replace(experience, versions=versions)
    loss_of, before = decoupled_loss(1.2)
    plain = plain_step(tiny_models.policy, stale, advantages, 0.7, loss_of=loss_of)
    config = rlhf_config(
        len(learners.handles), 2, {"rollout": {"max_staleness": 1}}, importance_cap=1.2, mini_batches=mini_batches
    )
    batch = as_batch(stale, reference)
    metrics, weights = learner_step(learners, tiny_models.policy, config, batch, advantages, 0.7, step=2)
    assert (metrics["staleness_mean"], metrics["staleness_max"]) == (pytest.approx(1 - versions.mean()), 1.0)
    if mini_batches > 1:  # the second update sees a policy that has moved away from the proximal one
        assert metrics["clip_fraction"] > 0
        return
    ratio = torch.exp(torch.cat(before) - torch.from_numpy(experience.logprobs))
    gap = (torch.cat(before) - torch.from_numpy(experience.logprobs)).abs()[torch.from_numpy(versions == 1)]
    assert metrics["actor_loss"] == pytest.approx(plain[0], abs=ROUNDING)
    assert metrics["grad_norm"] == pytest.approx(plain[1], rel=1e-3)
    check_update(weights, plain[2])
    assert metrics["importance_mean"] == pytest.approx(float(ratio.mean()), rel=LOGPROBS)
    assert metrics["importance_max"] == pytest.approx(float(ratio.max()), rel=LOGPROBS)
    assert metrics["importance_truncated_share"] == pytest.approx(float((ratio > 1.2).double().mean()), abs=1e-6)
    assert metrics["logprob_gap_mean"] == pytest.approx(float(gap.mean()), abs=LOGPROBS)
    assert metrics["logprob_gap_max"] == pytest.approx(float(gap.max()), abs=LOGPROBS)


def test_ratio_and_clip_are_taken_against_the_log_probabilities_that_are_asked_for(learners, tiny_models, step_data):
    """By hand in float64. One update: against its own log-probabilities the ratio is 1, and the weight remains."""
    experience, reference, advantages = step_data
    loss_of, before = decoupled_loss(1.2)
    decoupled = plain_step(tiny_models.policy, experience, advantages, 0.7, loss_of=loss_of)
    engines = plain_step(tiny_models.policy, experience, advantages, 0.7)
    ratio = np.exp(torch.cat(before).double().numpy() - experience.logprobs.astype(float))
    advantage = (advantages["help"].astype(float) - 0.7 * advantages["harm"]) / 1.7
    per_token = {
        "rollout": np.maximum(-advantage * ratio, -advantage * ratio.clip(0.8, 1.2)),
        "learner": -advantage * np.minimum(ratio, 1.2),
    }
    share = 1 / (12 * np.repeat(experience.response_lengths, experience.response_lengths))
    found = {}
    for option, plain in (("rollout", engines), ("learner", decoupled)):
        config = rlhf_config(len(learners.handles), 2, old_logprobs=option, importance_cap=1.2)
        batch = as_batch(experience, reference)
        metrics, weights = found[option] = learner_step(learners, tiny_models.policy, config, batch, advantages, 0.7)
        assert metrics["actor_loss"] == pytest.approx((share * per_token[option]).sum(), abs=ROUNDING)
        assert metrics["grad_norm"] == pytest.approx(plain[1], rel=1e-3)
        check_update(weights, plain[2])
        assert metrics["logprob_gap_mean"] == pytest.approx(np.abs(np.log(ratio)).mean(), abs=LOGPROBS)
    old, new = (metrics for metrics, _ in found.values())
    assert (old["clip_fraction"], new["clip_fraction"]) == (pytest.approx((np.abs(ratio - 1) > 0.2).mean()), 0)
    assert not any(key.startswith(("importance", "staleness")) for key in old)
    assert new["importance_mean"] == pytest.approx(ratio.mean(), rel=LOGPROBS)
    assert new["importance_max"] == pytest.approx(ratio.max(), rel=LOGPROBS)
    assert new["importance_truncated_share"] == pytest.approx((ratio > 1.2).mean(), abs=1e-6)
    assert "staleness_mean" not in new


def test_several_updates_keep_the_log_probabilities_before_the_first(learners, tiny_models, step_data):
    experience, reference, advantages = step_data
    loss_of, _ = decoupled_loss(2.0)
    loss, norm, _ = plain_step(tiny_models.policy, experience, advantages, 0.7, loss_of=loss_of, passes=2)
    config = rlhf_config(len(learners.handles), 2, old_logprobs="learner", update_iters=2)
    metrics, _ = learner_step(learners, tiny_models.policy, config, as_batch(experience, reference), advantages, 0.7)
    assert metrics["actor_loss"] == pytest.approx(loss, abs=1e-4)  # the second is of weights that one step has moved
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert metrics["clip_fraction"] > 0


def test_on_a_cpu_the_old_log_probabilities_are_the_engines(learners, tiny_models, step_data):
    experience, reference, advantages = step_data
    steps = []
    for options in ({}, {"old_logprobs": "rollout"}):
        config = rlhf_config(len(learners.handles), 2, mini_batches=2, **options)
        batch = as_batch(experience, reference)
        steps.append(learner_step(learners, tiny_models.policy, config, batch, advantages, 0.7))
    (metrics, weights), (same, again) = steps
    assert metrics == same
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


def test_tokens_beyond_the_staleness_are_refused(learners, tiny_models, step_data):
    experience, reference, advantages = step_data
    config = rlhf_config(len(learners.handles), 2, {"rollout": {"max_staleness": 1}})
    with pytest.raises(Exception, match="max_staleness allows 1 versions behind"):
        learner_step(learners, tiny_models.policy, config, as_batch(experience, reference), advantages, 0.7, step=3)


@pytest.mark.parametrize("old_logprobs", ["rollout", "learner"])
def test_stale_engines_trip_the_alarm(learners, tiny_models, step_data, old_logprobs):
    experience, reference, advantages = step_data
    config = rlhf_config(len(learners.handles), 2, old_logprobs=old_logprobs)
    strict = config.model_copy(update={"learner": config.learner.model_copy(update={"logprob_gap_alarm": 0.01})})
    with pytest.raises(Exception, match="do not hold the learner's weights"):
        learner_step(learners, tiny_models.policy, strict, as_batch(experience, reference), advantages, 0.7)


def test_a_signal_scores_estimates_and_fits(ray_session, tiny_models, step_data):
    """Alike on one rank in several micro-batches, and on two in one each, whose forward pass is taken for both."""
    experience, reference, _ = step_data
    config, batch = rlhf_config(1, 3), as_batch(experience, reference)
    critic = config.signals["harm"].critic.model_copy(update={"micro_batch_tokens": 100_000})
    signals = {"harm": config.signals["harm"].model_copy(update={"critic": critic})}
    whole = config.model_copy(update={"signals": {**config.signals, **signals}})
    first, second, losses = {}, {}, {}
    for ranks, run in ((1, config), (2, whole)):
        group = spmd_group("signal", SignalWorker, ranks)
        try:
            group.join(120)
            get(group.call("load", "harm", cost_models(tiny_models), run, 0), 300, "load")
            scores = get(group.handles[0].score.remote(experience), 120, "score")
            assert scores.shape == (12,)
            assert np.isfinite(scores).all()
            first[ranks] = get(group.call("advantages", batch), 120, "advantages")[0]
            losses[ranks] = get(group.call("train_critic", 1), 120, "train_critic")[0]["critic_loss"]
            second[ranks] = get(group.call("advantages", batch), 120, "advantages")[0]
        finally:
            group.stop()
    assert losses[1] > 0
    assert not np.allclose(first[1], second[1])  # the critic has moved
    assert_close(first[1], first[2], TINY_MODELS)
    assert_close(losses[1], losses[2], TINY_MODELS)
    assert_close(second[1], second[2], TINY_MODELS)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_critic_of_last_layers_goes_on_from_its_judge(ray_session, tiny_models, step_data, zero_stage):
    experience, reference, _ = step_data
    config, batch = rlhf_config(1, zero_stage), as_batch(experience, reference)
    critic = config.signals["harm"].critic.model_copy(update={"trained_layers": 1})
    signals = {"harm": config.signals["harm"].model_copy(update={"critic": critic})}
    config = config.model_copy(update={"signals": {**config.signals, **signals}})
    found, used = [], []
    for judged in (False, True):
        group = spmd_group("signal", SignalWorker, 1)
        try:
            group.join(120)
            get(group.call("load", "harm", cost_models(tiny_models), config, 0), 300, "load")
            for chunk in (experience.select(range(7)), experience.select(range(7, 12))) if judged else ():
                get(group.handles[0].score.remote(chunk), 120, "score")
            first = get(group.call("advantages", batch), 120, "advantages")[0]
            fitted = get(group.call("train_critic", 1), 120, "train_critic")[0]
            found.append((first, fitted["critic_loss"], fitted["critic_grad_norm"]))
            second = get(group.call("advantages", batch), 120, "advantages")[0]  # all was forgotten after the fit
            found[-1] += (second,)
            used.append(ray.get(group.handles[0].__ray_call__.remote(lambda worker: worker.trunk.used), timeout=60))
        finally:
            group.stop()
    assert used[0] == 0
    assert used[1] > 1
    assert not np.allclose(found[0][0], found[0][3])  # the critic has moved
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, TINY_MODELS)


def test_a_signal_without_a_critic_compares_the_samples_of_a_prompt(ray_session, tiny_models, step_data):
    experience, reference, _ = step_data
    watched = Signal(role="constraint", model="unused", threshold=0.0, multiplier=Multipliers(rule="none"))
    config = rlhf_config(1, 2, {"samples_per_prompt": 2, "advantage": {"estimator": "leave_one_out", "kl_coeff": 0.0}})
    config = config.model_copy(update={"signals": {**config.signals, "watched": watched}})
    batch = as_batch(experience, reference)
    batch.scores["watched"] = batch.scores["harm"]
    for name in ("harm", "watched"):
        group = spmd_group("signal", SignalWorker, 1)
        try:
            group.join(120)
            get(group.call("load", name, cost_models(tiny_models), config, 0, 0.0), 300, "load")
            advantages = get(group.call("advantages", batch), 120, "advantages")[0]
            metrics = get(group.call("train_critic", 1), 120, "train_critic")[0]
        finally:
            group.stop()
        assert set(metrics) == {"score_mean", "score_positive_share"}
        if name == "watched":
            assert advantages is None
            continue
        costs = np.concatenate([np.linspace(-1, 1, 7), np.linspace(-2, 2, 5)]).reshape(6, 2)  # uids 2i and 2i + 1
        expected = np.repeat((costs - costs[:, ::-1]).ravel(), experience.response_lengths)
        assert_close(advantages, expected, summands=int(experience.response_lengths.max()))


def test_the_owner_takes_crpo_turns_and_adapts_the_kl_coefficient(ray_session, tmp_path):
    rule = Multipliers(rule="crpo", tolerance=0.1, episode_cost_window_size=2)
    config = rlhf_config(
        1, 2, {"multipliers": rule, "advantage": {"kl_target": 6.0, "kl_coeff": 0.1, "kl_horizon": 2560}}
    )
    owner = MultiplierOwner(config, {"harm": 0.0}, tmp_path / "multipliers.json")

    def step(version, costs, kl):
        return owner.update(version, {"harm": [ray.put(np.array(costs, np.float32))]}, (kl, 256))

    reward_step, cost_step = step(1, [0.0, 0.1], 12.0), step(2, [1.0, 1.0], 12.0)
    assert (reward_step.objective_share, reward_step.multipliers) == (1.0, {"harm": 0.0})  # within the tolerance
    assert (cost_step.objective_share, cost_step.multipliers) == (0.0, {"harm": 1.0})
    assert reward_step.kl_coeff == pytest.approx(0.102)
    assert cost_step.metrics()["kl_coeff"] == pytest.approx(0.1 * 1.02**2)
    assert cost_step.metrics()["harm/regret"] == pytest.approx(1.05)
    again = MultiplierOwner(config, {"harm": 0.0}, tmp_path / "multipliers.json")
    assert again.state() == owner.state()
    other = config.model_copy(update={"multipliers": Multipliers()})
    with pytest.raises(ValueError, match="stored multipliers are of"):
        MultiplierOwner(other, {"harm": 0.0}, tmp_path / "multipliers.json")


def test_the_multiplier_owner_survives_its_process_and_never_updates_twice(ray_session, tmp_path):
    rule = Multipliers(lambda_init=0.5, lambda_lr=0.3, lambda_max=9.0, episode_cost_window_size=8)
    config = rlhf_config(1, 2).model_copy(update={"multipliers": rule})
    actor = ray.remote(MultiplierOwner).options(num_cpus=0, max_restarts=-1, max_task_retries=3)
    owner = actor.remote(config, {"harm": 0.2}, tmp_path / "multipliers.json")
    costs = {"harm": [ray.put(np.array([1.0, 2.0], np.float32)), ray.put(np.array([0.5], np.float32))]}
    first = get(owner.update.remote(1, costs), 60, "update")
    expected = 0.5 * np.exp(0.3 * 0.5 * (3.5 / 3 - 0.2))
    assert first.multipliers["harm"] == pytest.approx(expected, rel=1e-9)
    ray.kill(owner, no_restart=False)
    assert get(owner.update.remote(1, costs), 120, "update again") == first
    second = get(owner.update.remote(2, costs), 60, "update")
    assert second.version == 2
    assert second.multipliers["harm"] > first.multipliers["harm"]
    with pytest.raises(Exception, match="an update was lost"):
        get(owner.update.remote(4, costs), 60, "update")
