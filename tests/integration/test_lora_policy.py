"""LoRA policies with real engines: what is trained, what is sampled from, what is the reference, what is written."""

from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from actors.group import ActorGroup, get
from actors.reference import ReferenceWorker
from actors.reservation import Reservation
from actors.signal import SignalModels
from castor.config.data import DataSource
from castor.config.learner import PTX, Learner
from castor.config.rlhf import RLHF, Policy
from castor.config.rollout import Rollout
from castor.config.signal import Signal
from castor.config.training import Engine, LoRA, Optimizer
from castor.data.rows.load import stream_demonstrations
from castor.data.sources.report import RowReport
from castor.data.tokens.prompt_stream import PromptStream
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.experience import Experience
from castor.io.files import sha256_file
from castor.model_reference import ModelReference
from castor.models.lora import adapter_folder
from castor.models.policy import PolicyModel
from engines.batch import forward_by_budget, make_micro_batch
from tests.numerics import TINY_MODELS, assert_close, tolerance
from tests.plans import actors_of
from trainers.rlhf.groups import Groups
from trainers.rlhf.loop import train
from trainers.rlhf.producer import Producer

LORA = LoRA(rank=2, alpha=4.0, target_modules=["q_proj", "v_proj"])


def engine_of(zero_stage):
    return Engine(
        zero_stage=zero_stage,
        micro_batch_tokens=200,
        pack_length=128,
        optimizer=Optimizer(lr=3e-2, lr_scheduler_type="constant", lr_warmup_ratio=0),
    )


def weights_of(folder):
    (file,) = Path(folder).glob("model.safetensors")
    return load_file(file)


def experience_of(prompts, model):
    """Eight made-up responses of 3 to 24 tokens."""
    template, rng = PromptTemplate(load_tokenizer(model)), np.random.default_rng(0)
    heads = [template.encode_prompt(prompt) for prompt in prompts[:8]]
    lengths = 3 * np.arange(1, 9)
    tokens = [np.array([*head, *rng.integers(5, 300, n)], np.int32) for head, n in zip(heads, lengths, strict=True)]
    total = int(lengths.sum())
    return Experience(
        uids=np.arange(8),
        prompts=tuple(prompts[:8]),
        tokens=np.concatenate(tokens),
        prompt_lengths=np.array([len(head) for head in heads], np.int32),
        response_lengths=lengths.astype(np.int32),
        logprobs=np.full(total, -6.0, np.float32),
        versions=np.zeros(total, np.int32),
        truncated=np.zeros(8, bool),
    )


def plain_logprobs(policy, experience):
    return forward_by_budget(
        experience,
        lambda micro: policy(micro.rows, micro.response_positions),
        lengths=experience.response_lengths,
        engine=engine_of(0),
        device=torch.device("cpu"),
    )


def make(model, zero_stage):
    from engines.adapter import Adapter
    from engines.deepspeed_engine import TrainEngine

    torch.manual_seed(0)
    policy = PolicyModel.load(model, torch.float32)
    adapter = Adapter(policy, LORA, 0, 1)
    return adapter, TrainEngine(policy, engine_of(zero_stage), 10)


def step(engine, experience, sign):
    micro = make_micro_batch(experience, np.arange(8), {}, 128, torch.device("cpu"))
    engine.accumulate(sign * engine.forward(micro.rows, micro.response_positions).mean())
    engine.step()


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_only_the_adapter_is_trained_and_without_it_the_policy_is_the_reference(
    process_group, tiny_models, prompts, tmp_path, zero_stage
):
    model, experience = tiny_models.policy, experience_of(prompts, tiny_models.policy)
    base, plain = weights_of(model), PolicyModel.load(model, torch.float32).eval()
    reference = plain_logprobs(plain, experience)
    adapter, engine = make(model, zero_stage)
    assert_close(adapter.reference_logprobs(engine, experience, 1.0), reference, TINY_MODELS)
    for _ in range(2):  # asking for the reference in between disturbs nothing
        step(engine, experience, -1.0)
        assert_close(adapter.reference_logprobs(engine, experience, 1.0), reference, TINY_MODELS)

    layers = [name for name in base if name.endswith(("q_proj.weight", "v_proj.weight"))]
    count = sum(LORA.rank * sum(base[name].shape) for name in layers)
    moments = [state["exp_avg"].numel() for state in engine.engine.basic_optimizer.state.values()]
    assert count <= sum(moments) < count + 64  # DeepSpeed pads its partitions
    merged = {name: tensor.clone() for name, tensor in adapter.merged(engine)}
    assert {name for name in merged if not torch.equal(merged[name], base[name])} == set(layers)
    plain.lm.load_state_dict(merged, strict=False)
    logprobs = plain_logprobs(plain, experience)
    assert np.abs(logprobs - reference).max() > 1e-3
    micro = make_micro_batch(experience, np.arange(8), {}, 128, torch.device("cpu"))
    assert_close(engine.infer(micro.rows, micro.response_positions), logprobs, TINY_MODELS)

    engine.save(tmp_path)
    keys = {key.rpartition("/")[0] for file in tmp_path.glob("rank-*") for key in load_file(file)}
    assert keys == {name for name, _ in engine.engine.module.named_parameters() if ".lora_" in name}
    other, again = make(model, zero_stage)
    again.load(tmp_path)
    for each in (engine, again):
        step(each, experience, 1.0)
    pairs = zip(adapter.merged(engine), other.merged(again), strict=True)
    assert all(ours[0] == theirs[0] and torch.equal(ours[1], theirs[1]) for ours, theirs in pairs)


def loop_config(zero_stage, adapters="apart"):
    engine = engine_of(zero_stage)
    return RLHF(
        steps=3,
        prompts_per_step=4,
        samples_per_prompt=2,
        policy=Policy(lora=LORA),
        signals={"help": Signal(role="objective", model="reward", critic=None)},
        advantage={"estimator": "leave_one_out"},
        rollout=Rollout(
            max_prompt_tokens=64, max_new_tokens=16, chunk_size=3, max_num_seqs=16, kv_cache_mib=64, adapters=adapters
        ),
        learner=Learner(
            ranks=2, engine=engine, logprob_gap_alarm=1e-4, entropy_coeff=0.01, ptx=PTX(batch_size=4, ptx_coeff=1.0)
        ),
    )


def test_the_loop_with_an_adapter(ray_session, tiny_models, prompts, tokenised_prompts, tmp_path):
    """Two ranks of ZeRO-3, with entropy and PTX; then the same learners at ZeRO-2, whose ranks answer by themselves."""
    model, config, results = tiny_models.policy, loop_config(3), []
    before = {path: sha256_file(path) for path in Path(model).iterdir()}
    rows = list(stream_demonstrations(DataSource(limit=40), RowReport()))
    with Groups(
        config,
        actors=actors_of(config),
        reservation=Reservation(),
        policy=model,
        limits={},
        signals={"help": SignalModels(tiny_models.reward, None, ModelReference(model))},
        template="auto",
        seed=3,
        ptx_rows=rows,
        multipliers_file=tmp_path / "multipliers.json",
    ) as groups:
        assert groups.reference is None
        producer = Producer(config, groups, PromptStream(tokenised_prompts, 4, 3), 3, 1)
        train(config, groups, producer, results.append)
        get(groups.learner.call("export", tmp_path / "policy"), 300, "export")
        transfer, experience = groups.rollout.update, experience_of(prompts, model)
        updates = (transfer, transfer.base)
        sent, once = ({name for bucket in ray.get(each.pieces) for name in bucket} for each in updates)
        shared = get(groups.reference_logprobs(1, 0, ray.put(experience)), 120, "reference")
        get(groups.learner.call("load", model, loop_config(2), 3, "auto", rows), 300, "load")
        alone = get(groups.learner.handles[1].reference_logprobs.remote(experience), 120, "reference")
    worker = ActorGroup("reference", [ReferenceWorker.remote()])
    get(worker.call("load", model, loop_config(3)), 300, "load")
    expected = get(worker.call("logprobs", experience)[0], 300, "reference")
    worker.stop()
    assert_close(shared, expected, TINY_MODELS)
    assert_close(alone, expected, TINY_MODELS)

    gaps = [result.metrics["logprob_gap_max"] for result in results]  # of versions 0, 1 (base and all) and 2 (no base)
    assert max(gaps) < tolerance(10.0, TINY_MODELS), gaps  # log-probabilities down to about -10
    assert abs(results[0].metrics["kl"]) < 1e-3 < abs(results[2].metrics["kl"])
    assert all(result.metrics[name] != 0 for result in results for name in ("ptx_loss", "entropy", "grad_norm"))
    base, merged = weights_of(model), weights_of(tmp_path / "policy")
    assert before == {path: sha256_file(path) for path in Path(model).iterdir()}
    layers = {name for name in base if name.endswith(("q_proj.weight", "v_proj.weight"))}
    assert {name for name in base if not torch.equal(base[name], merged[name])} == layers
    assert sent == {name.replace("weight", f"lora_{which}.weight") for name in layers for which in "AB"}
    assert once == base.keys()

    ids = torch.arange(5, 45)[None]
    plain = AutoModelForCausalLM.from_pretrained(model).eval()
    start = plain(ids).logits
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()(ids).logits
    adapted = PeftModel.from_pretrained(plain, adapter_folder(tmp_path / "policy")).eval()(ids).logits
    assert_close(ours, adapted, TINY_MODELS)
    assert (ours - start).abs().max() > 1e-3
    load_tokenizer(str(tmp_path / "policy"))


def test_the_loop_with_engines_that_hold_the_adapter_merged(
    ray_session, tiny_models, prompts, tokenised_prompts, tmp_path
):
    """An update is the whole model; what is sampled is what the learner computes, with its adapter."""
    model, config, results = tiny_models.policy, loop_config(2, "merged"), []
    with Groups(
        config,
        actors=actors_of(config),
        reservation=Reservation(),
        policy=model,
        limits={},
        signals={"help": SignalModels(tiny_models.reward, None, ModelReference(model))},
        template="auto",
        seed=3,
        ptx_rows=list(stream_demonstrations(DataSource(limit=40), RowReport())),
        multipliers_file=tmp_path / "multipliers.json",
    ) as groups:
        producer = Producer(config, groups, PromptStream(tokenised_prompts, 4, 3), 3, 1)
        train(config, groups, producer, results.append)
        update = groups.rollout.update
        sent = {name for bucket in ray.get(update.pieces) for name in bucket}
    assert update.base is None
    assert sent == weights_of(model).keys()
    gaps = [result.metrics["logprob_gap_max"] for result in results]
    assert max(gaps) < tolerance(10.0, TINY_MODELS), gaps
    assert abs(results[0].metrics["kl"]) < 1e-3 < abs(results[2].metrics["kl"])  # the adapter is in the engines
