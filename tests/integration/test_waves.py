"""Waves of prompts of any size on a CPU: the same responses as one by one, and as with vLLM's own arguments."""

import numpy as np
import pytest
import ray

from actors.group import actor_options, get
from castor.config.demo_model import DemoModel
from castor.config.rollout import Rollout
from castor.config.training import Resources
from castor.models.tiny import make_demo_model
from engines.vllm_arguments import CPU_PREFILL_TOKENS, VLLM_ENV

CONTEXT, VOCABULARY = 6000, 300
CONFIG = Rollout(max_prompt_tokens=5900, max_new_tokens=6, max_num_seqs=128, kv_cache_mib=64)


@ray.remote
class Sampler:
    """A rollout engine with some arguments left out."""

    def __init__(self, model, left_out=()):
        import torch

        torch.set_num_threads(1)
        from engines.vllm_engine import InprocEngine, rollout_arguments

        arguments = rollout_arguments(model, CONFIG, CONTEXT, False)
        self.engine = InprocEngine({key: value for key, value in arguments.items() if key not in left_out}, CONFIG)

    def sample(self, prompts, first=0):
        """Tokens and log-probabilities of one wave, by place."""
        from engines.vllm_engine import Request

        wave = [Request(first + place, prompt, 1000 + first + place) for place, prompt in enumerate(prompts)]
        return {response.uid: (response.tokens, response.logprobs) for response in self.engine.generate(wave)}


@pytest.fixture(scope="module")
def samplers(ray_session, tmp_path_factory):
    """With Castor's arguments, and with vLLM's own where ours differ. They start at the same time."""
    folder = tmp_path_factory.mktemp("long") / "policy"
    shape = DemoModel(hidden_size=64, intermediate_size=96, heads=2, layers=1, max_position_embeddings=CONTEXT)
    make_demo_model(shape, (f"word{i} and word{i + 1}" for i in range(400)), 0, folder)
    started = [
        Sampler.options(**actor_options(Resources(), "sampler", **VLLM_ENV)).remote(str(folder), left_out)
        for left_out in ((), ("enable_chunked_prefill", "max_num_batched_tokens"))
    ]
    yield started
    for sampler in started:
        ray.kill(sampler)


@pytest.fixture
def sampler(samplers):
    return samplers[0]


def prompts_of(lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(5, VOCABULARY, length).tolist() for length in lengths]


def sample(sampler, prompts, size):
    waves = range(0, len(prompts), size)
    parts = [get(sampler.sample.remote(prompts[i : i + size], i), 600, "a wave") for i in waves]
    return {uid: response for part in parts for uid, response in part.items()}


def tokens(responses):
    return {uid: tokens for uid, (tokens, _) in responses.items()}


def test_a_wave_of_more_tokens_than_a_step_has_room_for(sampler):
    prompts = prompts_of([55] * 256)
    assert sum(map(len, prompts[:128])) > CPU_PREFILL_TOKENS + 128
    assert tokens(sample(sampler, prompts, 256)) == tokens(sample(sampler, prompts, 32))


def test_prompts_longer_than_a_step_of_vllm_s_own(sampler):
    prompts = prompts_of([20, 5900, 30, 4500, 4097, 40, 5000])
    assert tokens(sample(sampler, prompts, 7)) == tokens(sample(sampler, prompts, 1))


def test_smaller_waves_are_sampled_as_with_vllm_s_own_arguments(samplers):
    sampler, plain = samplers
    prompts = prompts_of(np.random.default_rng(1).integers(5, 60, 100))
    assert sum(map(len, prompts)) < CPU_PREFILL_TOKENS
    assert sample(sampler, prompts, 100) == sample(plain, prompts, 100)  # log-probabilities, too
