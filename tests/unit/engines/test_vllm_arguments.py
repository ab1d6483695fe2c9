"""The arguments of vLLM engines on a CPU, for rollouts and serving."""

import pytest

from actors.fork_client import VLLM
from castor.config.rollout import Rollout
from castor.config.serve import Policy
from engines.vllm_arguments import VLLM_ENV, engine_arguments


@pytest.mark.parametrize("max_length", [2, 112, 5000, 131_072])
@pytest.mark.parametrize("max_num_seqs", [1, 8, 128, 1024])
def test_every_prompt_fits_into_a_step_beside_running_responses(max_num_seqs, max_length):
    found = engine_arguments("model", Rollout(max_num_seqs=max_num_seqs), max_length, False)
    budget = found["max_num_batched_tokens"]
    assert found["enable_chunked_prefill"] is False  # a part of a seeded prompt would end the engine
    assert budget >= max(max_num_seqs, max_length)
    assert budget >= min(4096, max_num_seqs * max_length)  # what it was when prompts were split
    assert max_num_seqs == 1 or budget >= max_length + max_num_seqs - 1
    assert budget <= max_num_seqs * max_length  # more is never scheduled


def test_rollouts_and_serving_differ_only_where_their_options_do():
    options = {"max_num_seqs": 16, "kv_cache_mib": 32, "dtype": "float32"}
    rollout = engine_arguments("model", Rollout(**options), 128, True)
    assert rollout == engine_arguments("model", Policy(**options), 128, True)
    assert rollout["kv_cache_memory_bytes"] == 32 << 20
    assert rollout["trust_remote_code"] is True


def test_a_cache_of_a_named_size_is_not_measured(monkeypatch):
    assert engine_arguments("model", Rollout(), 128, True)["kv_cache_memory_bytes"] == 128 << 20
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    measured = engine_arguments("model", Rollout(dtype="float32"), 128, True)
    assert "kv_cache_memory_bytes" not in measured
    named = engine_arguments("model", Rollout(dtype="float32", kv_cache_mib=64), 128, True)
    assert named == measured | {"kv_cache_memory_bytes": 64 << 20}


def test_a_fork_is_told_by_its_environment_that_it_is_to_hold_an_engine():
    assert VLLM in VLLM_ENV


def test_an_engine_may_fetch_a_model_that_its_node_lacks():
    assert not [name for name in VLLM_ENV if "OFFLINE" in name]
