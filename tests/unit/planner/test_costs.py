"""Seconds of the parts of a step, against values worked by hand."""

from dataclasses import replace

import pytest

from castor.config.training import Engine, LoRA, Offload
from castor.dry_run.shapes import Shape
from castor.planner.costs import Costs, Decoder, Tokens, forward_flops
from castor.planner.device import Device

# 2 layers of 1,000 weights each, an embedding and a head of 10 words x 10
SHAPE = Shape(2200, 2100, hidden=10, intermediate=20, layers=2, vocabulary=10, heads=5, kv_heads=5, head_size=2)
DEVICE = Device(
    "X", flops=1e6, bandwidth=1e5, memory_gib=1, link=1e4, network=1e2, host_link=1e4, host_bandwidth=1e4,
    training=0.5, forward=0.25, prefill=0.5, reading=0.5, moving=0.5, iteration_s=0.1, sequence_s=0.01,
    reduction_s=0.001, pass_s=0.0, call_s=0.0,
)  # fmt: skip
COSTS = Costs(DEVICE, gpus_per_node=4)
TOKENS = Tokens(total=100, responses=40, context=10)
ENGINE = Engine(zero_stage=0, micro_batch_tokens=1000)


def test_a_forward_pass_counts_layers_attention_and_the_head_of_response_tokens():
    # 2 FLOPs a weight; causal attention: 2 products of 2 FLOPs with half the context, heads x head_size = 10, 2 layers
    layers = (2 * 2000 + 2 * 2 * 10 * 10) * 100
    assert forward_flops(SHAPE, TOKENS, score=False) == (layers, 2 * 100 * 40)
    assert forward_flops(SHAPE, TOKENS, score=True) == (layers, 0)


@pytest.mark.parametrize(
    ("samples", "room", "total"),
    [
        (1, 1000, 100),
        (4, 1000, 55),  # of 60 tokens of prompts a quarter
        (4, 20, 70),  # two of ten tokens go together: half
        (4, 9, 100),  # each alone
        (1.25, 1000, 100),  # a fifth of 60 is less than a fifth of all: nothing is shared
    ],
)
def test_a_prompt_is_computed_once_for_the_responses_that_go_together(samples, room, total):
    tokens = replace(TOKENS, samples=samples)
    assert tokens.computed(room) == replace(tokens, total=total)


def test_a_forward_pass_leaves_out_what_responses_to_a_prompt_share():
    tokens = replace(TOKENS, samples=4)
    assert COSTS.forward(SHAPE, ENGINE, tokens, score=True) == pytest.approx(0.55 * 440_000 / 250_000)
    # two ranks, of whose 50 tokens at most 12 go together: one response at a time, nothing is shared
    assert COSTS.shared_forward(SHAPE, ENGINE, 2, tokens, score=True) == pytest.approx(0.5 * 440_000 / 250_000)
    long = replace(tokens, total=1000, responses=400)  # 125 tokens together: all four
    assert COSTS.shared_forward(SHAPE, ENGINE, 2, long, score=True) == pytest.approx(5 * 0.55 * 440_000 / 250_000)
    assert COSTS.training(SHAPE, ENGINE, 2, long, score=True) == pytest.approx(3 * 5 * 0.55 * 440_000 / 500_000)


def test_a_forward_pass_takes_its_flops_at_the_share_that_is_reached():
    assert COSTS.forward(SHAPE, ENGINE, TOKENS, score=True) == pytest.approx(440_000 / 250_000)


@pytest.mark.parametrize(
    ("engine", "lora", "flops"),
    [
        (ENGINE, None, 3 * 440_000 + 3 * 8000),
        (ENGINE.model_copy(update={"gradient_checkpointing": True}), None, 4 * 440_000 + 3 * 8000),
        (ENGINE.model_copy(update={"logits_chunk_tokens": 10}), None, 3 * 440_000 + 4 * 8000),
        (ENGINE, LoRA(), 2 * 440_000 + 2 * 8000),
        (ENGINE.model_copy(update={"trained_layers": 1}), None, 2 * 440_000 + 2 * 8000),  # one of two
    ],
    ids=["plain", "checkpointed", "logits in chunks", "adapters", "last layer"],
)
def test_training_counts_a_backward_pass_and_what_is_computed_again(engine, lora, flops):
    assert COSTS.training(SHAPE, engine, 1, TOKENS, score=False, lora=lora) == pytest.approx(flops / 500_000)
    assert COSTS.training(SHAPE, engine, 2, TOKENS, score=False, lora=lora) == pytest.approx(flops / 2 / 500_000)


def test_zero_3_gathers_the_weights_of_every_micro_batch_and_takes_the_longer_of_sending_and_computing():
    engine = Engine(zero_stage=3, micro_batch_tokens=1000)
    # 2,200 weights of 2 bytes, half of them from the other rank, at half of 1e4 bytes/s: gathered twice, reduced once
    sent = 3 * 2200 * 2 * 0.5 / 5e3
    computed = (3 * 440_000 + 3 * 8000) / 2 / 500_000
    assert COSTS.training(SHAPE, engine, 2, TOKENS, score=False) == pytest.approx(max(sent, computed))
    slow = Costs(replace(DEVICE, link=1e3), 4)
    assert slow.training(SHAPE, engine, 2, TOKENS, score=False) == pytest.approx(10 * sent)


def test_groups_over_several_nodes_share_the_networks_of_a_node():
    assert COSTS.group_rate(4) == 1e4 * 0.5
    assert COSTS.group_rate(5) == 4 * 1e2 * 0.5


def test_the_optimiser_reads_and_writes_its_states():
    assert COSTS.update(SHAPE, ENGINE, 1, score=False) == pytest.approx(2200 * 32 / 5e4)
    offloaded = Engine(zero_stage=3, offload=Offload(optimizer="cpu"))
    assert COSTS.update(SHAPE, offloaded, 2, score=False) == pytest.approx(1100 * 28 / 1e4 + 1100 * 6 / 5e3)


def decoder(slots=100, parallel=1):
    return Decoder(COSTS, SHAPE, 2, parallel, slots)


def test_an_iteration_of_decoding_reads_weights_and_cache():
    # 2 x 2 layers x 5 heads x 2 numbers x 2 bytes = 80 a cached token
    read = (2100 * 2 + 50 * 80) / 5e4
    assert decoder().iteration(3, 50) == pytest.approx(0.1 + 3 * 0.01 + read)
    halved = 0.1 + 3 * 0.01 + (2100 * 2 / 2 + 50 * 32) / 5e4 + 4 * 0.001  # 5 heads on 2 GPUs: 2 each, as vLLM rounds
    assert decoder(parallel=2).iteration(3, 50) == pytest.approx(halved)


def test_equal_responses_end_together():
    ends = decoder().finished(10, [8, 8, 8])
    cached = 3 * (10 + 4)  # half way
    expected = 2 * 2100 * 30 / 5e5 + 8 * decoder().iteration(3, cached)
    assert [index for _, index in ends] == [0, 1, 2]
    assert [when for when, _ in ends] == pytest.approx([expected] * 3)


def test_a_response_that_ends_makes_room_for_the_next_one():
    alone = [decoder(slots=1).finished(0, [length])[0][0] for length in (2, 5)]
    ends = decoder(slots=1).finished(0, [2, 5])
    assert [when for when, _ in ends] == pytest.approx([alone[0], sum(alone)])
    both = decoder(slots=2).finished(0, [2, 5])
    assert both[1][0] < sum(alone)


def test_every_response_ends_once():
    lengths = [3, 1, 7, 7, 2, 9, 1, 4]
    for slots in (1, 2, 3, 100):
        ends = decoder(slots).finished(5, lengths)
        assert sorted(index for _, index in ends) == list(range(8))
        assert [when for when, _ in ends] == sorted(when for when, _ in ends)
