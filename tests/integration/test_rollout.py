"""Rollout workers with real vLLM engines: log-probabilities, weight transfer, determinism, death."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayActorError
from safetensors.torch import load_file, save_file

from actors.folder_weights import FolderWeights
from actors.group import get
from actors.reservation import Reservation
from actors.rollout import PromptRequest, RolloutWorker
from actors.rollout_pool import RolloutPool
from castor.config.rollout import Rollout
from castor.experience import Experience
from castor.models.policy import PolicyModel
from engines.batch import make_micro_batch
from tests.faults import Faults, mortal
from tests.numerics import TINY_MODELS, assert_close

ROLLOUT = Rollout(workers=2, max_prompt_tokens=64, max_new_tokens=24, chunk_size=4, max_num_seqs=16, kv_cache_mib=64)


def requests(tokenised_prompts, count):
    return [PromptRequest(uid, tokenised_prompts[uid], 1000 + uid) for uid in range(count)]


def collect(pool, wanted):
    chunks = list(pool.generate(wanted))
    experience = Experience.concatenate([ray.get(chunk.experience) for chunk in chunks])
    return experience.select(experience.uids.argsort())


def hf_logprobs(model, experience, temperature=1.0):
    policy = PolicyModel.load(model, torch.float32).eval()
    micro = make_micro_batch(experience, experience.uids.argsort(), {}, 512, torch.device("cpu"))
    with torch.no_grad():
        return policy(micro.rows, micro.response_positions, temperature)


@pytest.fixture(scope="module")
def changed_policy(tiny_models, tmp_path_factory):
    """The policy with every weight doubled: another distribution, the same architecture."""
    import shutil
    from pathlib import Path

    folder = tmp_path_factory.mktemp("changed") / "policy"
    shutil.copytree(tiny_models.policy, folder)
    (file,) = Path(folder).glob("*.safetensors")
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def pool(ray_session, tiny_models, faults):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.rollout_pool.FinishingWorker", ray.remote(mortal(RolloutWorker, faults)))
        pool = RolloutPool(tiny_models.policy, ROLLOUT)
        pool.wait_ready()
        yield pool
        pool.stop()


def check_transfer(pool, source, folder, version, wanted, temperature=1.0):
    pool.load_weights(get(source.publish.remote(folder, version), 120, "publish"))
    experience = collect(pool, wanted)
    assert set(experience.versions.tolist()) == {version}
    assert_close(experience.logprobs, hf_logprobs(folder, experience, temperature), TINY_MODELS)
    return experience


def test_every_prompt_once_with_the_engines_own_logprobs(pool, tiny_models, tokenised_prompts):
    experience = collect(pool, requests(tokenised_prompts, 13))
    assert experience.uids.tolist() == list(range(13))
    assert experience.prompts == tuple(prompt.text for prompt in tokenised_prompts[:13])
    heads = np.split(experience.tokens, np.cumsum(experience.lengths)[:-1])
    for head, length, prompt in zip(heads, experience.prompt_lengths, tokenised_prompts[:13], strict=True):
        assert np.array_equal(head[:length], prompt.ids)
    assert_close(experience.logprobs, hf_logprobs(tiny_models.policy, experience), TINY_MODELS)
    assert all(len_ == 24 for len_, cut in zip(experience.response_lengths, experience.truncated, strict=True) if cut)


def test_the_same_requests_give_the_same_tokens_whatever_the_batch(pool, tokenised_prompts):
    whole, alone = collect(pool, requests(tokenised_prompts, 8)), collect(pool, requests(tokenised_prompts, 8)[5:6])
    assert whole.select([5]).tokens.tolist() == alone.tokens.tolist()


def test_a_weight_transfer_changes_the_samples_and_is_proven(pool, tiny_models, changed_policy, tokenised_prompts):
    source = FolderWeights.remote()
    before = collect(pool, requests(tokenised_prompts, 8))
    after = check_transfer(pool, source, changed_policy, 1, requests(tokenised_prompts, 8))
    assert before.tokens.tolist() != after.tokens.tolist()
    check_transfer(pool, source, tiny_models.policy, 2, requests(tokenised_prompts, 8))


def test_weights_that_are_not_the_announced_ones_are_refused(pool, tiny_models):
    source = FolderWeights.remote()
    update = get(source.publish.remote(tiny_models.policy, 3), 120, "publish")
    with pytest.raises(RuntimeError, match="the weights did not arrive"):
        pool.load_weights(replace(update, digest="0" * 32))
    pool.load_weights(update)


def test_workers_that_die_are_replaced_and_no_prompt_is_lost_or_doubled(
    pool, faults, changed_policy, tokenised_prompts
):
    source = FolderWeights.remote()
    pool.load_weights(get(source.publish.remote(changed_policy, 4), 120, "publish"))
    undisturbed = collect(pool, requests(tokenised_prompts, 40))
    faults.arm(2)  # both workers: only a replacement with the current weights can finish the job
    again = collect(pool, requests(tokenised_prompts, 40))
    assert (faults.struck(), pool.restarts) == (2, 2)
    assert again.uids.tolist() == list(range(40))
    assert again.tokens.tolist() == undisturbed.tokens.tolist()
    assert set(again.versions.tolist()) == {4}
    assert get([worker.cache_mib.remote() for worker in pool.workers], 60, "workers") == [64, 64]


def test_async_engine_with_a_neighbour_on_its_gpu_behind_the_same_interface(
    pool, tiny_models, changed_policy, tokenised_prompts, monkeypatch
):
    pool.stop()  # two engines are enough for a small machine
    config = ROLLOUT.model_copy(update={"engine": "async", "workers": 1, "temperature": 0.7})
    waited, wait_ready = [], RolloutPool.wait_ready
    monkeypatch.setattr(RolloutPool, "wait_ready", lambda pool: waited.append(wait_ready(pool)))
    other = RolloutPool(tiny_models.policy, config, Reservation(None, {"rollout-0": 0, "reference-0": 0}))
    try:
        assert len(waited) == 1  # the neighbour starts after this, when vLLM has counted the memory
        experience = collect(other, requests(tokenised_prompts, 9))
        assert experience.uids.tolist() == list(range(9))
        assert_close(experience.logprobs, hf_logprobs(tiny_models.policy, experience, 0.7), TINY_MODELS)
        check_transfer(other, FolderWeights.remote(), changed_policy, 1, requests(tokenised_prompts, 9), 0.7)
        (worker,) = other.workers
        (process,) = get(worker.__ray_call__.remote(lambda worker: worker.engine.watch()), 60, "the worker")
        os.kill(process, signal.SIGSTOP)  # the call has been made when its engine dies
        answer = worker.cache_mib.remote()
        assert not ray.wait([answer], timeout=2.0)[0]
        os.kill(process, signal.SIGKILL)
        with pytest.raises(RayActorError):
            ray.get(answer, timeout=60)
    finally:
        other.stop()
