import pytest

from castor.config.rollout import Rollout
from castor.config.training import Engine, LoRA, Offload, Resources
from castor.dry_run.memory import (
    CUDA_CONTEXT,
    FRAGMENTATION,
    GIB,
    NCCL,
    bytes_per_number,
    frozen,
    logit_bytes,
    sampled,
    trained,
)
from castor.dry_run.placement import placement
from castor.dry_run.shapes import Shape, measure
from tests.unit.dry_run.test_plan import BACKBONE, PARAMETERS, demo

GPU = Resources(gpus=1)
LLAMA_8B = Shape(8_030_261_248, 7_504_924_672, 4096, 14336, 32, 128256, 32, 8, 128)


@pytest.fixture(scope="module")
def shape():
    return measure(demo().config.model)


def test_known_models_are_sized_without_a_network():
    assert measure("PKU-Alignment/alpaca-8b-reproduced-llama-3") == LLAMA_8B  # 8.03 B, as its authors count Llama 3 8B
    large = measure("meta-llama/Llama-3.1-70B-Instruct")
    assert (
        large.parameters == 70_553_706_496
    )  # as the weights' index on the hub says, in bfloat16: 141_107_412_992 bytes
    assert (large.layers, large.heads, large.kv_heads, large.head_size) == (80, 64, 8, 128)


def test_one_rank_in_float32(shape):
    memory = trained(shape, Engine(zero_stage=2), 1, Resources(), score=False)
    assert memory.weights == memory.gradients == 4 * PARAMETERS
    assert memory.optimizer == 12 * PARAMETERS  # two moments, and the copy stages 1 and 2 keep even in float32
    assert memory.frozen == memory.gpu == memory.runtime == 0


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "states"), [(0, 1, 1, 1), (1, 1, 1, 4), (2, 1, 4, 4), (3, 4, 4, 4)]
)
def test_zero_shards_over_four_ranks(shape, stage, weights, gradients, states):
    engine = Engine(zero_stage=stage, dtype="bfloat16")
    memory = trained(shape, engine, 4, Resources(), score=False)
    assert memory.weights == 2 * PARAMETERS / weights
    assert memory.gradients == (4 if stage else 2) * PARAMETERS / gradients  # summed in float32 where DeepSpeed can
    assert memory.optimizer == 12 * PARAMETERS / states


def test_stage_0_updates_float32_weights_themselves(shape):
    assert trained(shape, Engine(zero_stage=0), 1, Resources(), score=False).optimizer == 8 * PARAMETERS
    for stage in (1, 2, 3):
        assert trained(shape, Engine(zero_stage=stage), 1, Resources(), score=False).optimizer == 12 * PARAMETERS


def test_frozen_models_and_engines_on_a_cpu(shape):
    scorer = frozen(shape, Engine(), Resources(), score=True)
    assert (scorer.frozen, scorer.optimizer, scorer.gradients) == (4 * (BACKBONE + 129), 0, 0)
    (signal,) = (a.memory for a in placement(demo())["ppo_lag"] if a.name == "signal-harm")
    assert signal.frozen == signal.weights == 4 * (BACKBONE + 129)
    engine = sampled(shape, Rollout(kv_cache_mib=64))
    assert (engine.weights, engine.kv_cache, engine.gpu_share) == (4 * PARAMETERS, 64 << 20, None)
    assert [bytes_per_number("auto", gpu) for gpu in (False, True)] == [4, 2]


def test_an_engine_shares_weights_and_heads_among_its_gpus():
    rollout = Rollout(tensor_parallel_size=4, resources=Resources(gpus=4), gpu_memory_utilization=0.5)
    memory = sampled(LLAMA_8B, rollout)
    assert memory.weights == 2 * LLAMA_8B.parameters / 4
    longest = rollout.max_prompt_tokens + rollout.max_new_tokens
    assert (
        memory.kv_cache == longest * 2 * 32 * (8 // 4) * 128 * 2
    )  # keys and values, 32 layers, 2 heads of 128, bfloat16
    assert memory.takes_rest
    sized = sampled(LLAMA_8B, rollout.model_copy(update={"kv_cache_mib": 512}))
    assert (sized.kv_cache, sized.takes_rest, sized.gpu_share) == (512 << 20, False, 0.5)
    assert LLAMA_8B.kv_cache(2, 16) == LLAMA_8B.kv_cache(2, 8)  # eight heads on sixteen GPUs: each has one
    assert memory.host == memory.process
    assert memory.on_card(80 * GIB) == 40 * GIB + CUDA_CONTEXT + NCCL


def test_cuda_and_fragmentation_count_on_a_gpu():
    engine = Engine(zero_stage=3, gradient_checkpointing=True, micro_batch_tokens=2048)
    memory = trained(LLAMA_8B, engine, 2, GPU, score=False)
    assert memory.gpu == memory.model * FRAGMENTATION + CUDA_CONTEXT + NCCL
    # a reading of the sources gives 71 to 75 for two ranks of a learner; sums of gradients in float32 take 7.5 more,
    # logits a chunk at a time 2.4 less
    assert 76 * GIB < memory.gpu < 80 * GIB
    alone = frozen(LLAMA_8B, engine, GPU, score=False)
    assert alone.gpu == alone.model * FRAGMENTATION + CUDA_CONTEXT  # no other rank to talk to


def test_an_offloaded_critic_is_on_the_host_with_its_gradients():
    engine = Engine(zero_stage=3, offload=Offload(optimizer="cpu"), gradient_checkpointing=True)
    memory = trained(LLAMA_8B, engine, 2, GPU, score=True)
    assert (memory.gradients, memory.optimizer) == (0, 0)
    assert memory.offloaded == pytest.approx(20 * LLAMA_8B.score / 2)  # 12 of states, 8 of float32 gradients
    assert memory.host == memory.process + memory.offloaded


def test_logits_and_an_entropy_bonus_grow_with_tokens_and_vocabulary():
    engine = Engine(zero_stage=3, gradient_checkpointing=True, micro_batch_tokens=4096)
    plain, entropy = (trained(LLAMA_8B, engine, 8, GPU, score=False, entropy=on) for on in (False, True))
    assert entropy.working - plain.working == engine.chunk_tokens(128256) * 128256 * 6
    assert (logit_bytes(4), logit_bytes(2), logit_bytes(2, entropy=True)) == (12, 14, 20)


def test_the_last_layers_alone_have_optimiser_states():
    """An 8B critic of which 8 of 32 layers are trained: 218 million parameters each, by the shapes of Llama 3."""
    engine = Engine(zero_stage=3, trained_layers=8, gradient_checkpointing=True)
    memory, whole = (
        trained(LLAMA_8B, each, 4, GPU, score=True)
        for each in (engine, Engine(zero_stage=3, gradient_checkpointing=True))
    )
    layer = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336) + 2 * 4096
    assert memory.optimizer == pytest.approx(12 * 8 * layer / 4, rel=1e-3)
    assert memory.gradients == pytest.approx(4 * 8 * layer / 4, rel=1e-3)
    assert memory.weights == pytest.approx(2 * LLAMA_8B.score / 4)
    assert memory.working < whole.working


def test_an_adapter_leaves_the_model_frozen():
    engine = Engine(zero_stage=3)
    memory = trained(LLAMA_8B, engine, 4, GPU, score=False, lora=LoRA(rank=4))
    factors = LLAMA_8B.adapters(LoRA(rank=4))
    assert factors == 4 * 32 * (4 * 2 * 4096 + 3 * (4096 + 14336))
    assert memory.weights == 2 * (LLAMA_8B.parameters + factors) / 4
    assert memory.optimizer == 12 * factors / 4
