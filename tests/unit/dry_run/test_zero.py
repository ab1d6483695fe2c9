"""What a rank holds under ZeRO, against DeepSpeed's own estimators, and counts worked by hand."""

import os

import pytest

from castor.config.training import Offload
from castor.dry_run.zero import SUB_GROUP, Sizes, zero

P = 8_000_000_000
SIZES = Sizes(trained=P, frozen=0, largest=500_000_000, widest=500_000_000)
HERE, AWAY = Offload(), Offload(optimizer="cpu")


@pytest.fixture(scope="module")
def deepspeed_estimates():
    """(stage, ranks, offload) -> host bytes of a node that has all ranks, and bytes of a GPU."""
    before = dict(os.environ)
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    os.environ.clear()
    os.environ.update(before)

    def estimates(stage, ranks, offload):
        away = offload.optimizer == "cpu"
        if stage == 2:
            return estimate_zero2_model_states_mem_needs(P, ranks, 1, cpu_offload=away, additional_buffer_factor=1)
        parameters = offload.parameters == "cpu"
        host, gpu, _ = estimate_zero3_model_states_mem_needs(
            P, 0, ranks, 1, cpu_offload=away, cpu_offload_params=parameters, additional_buffer_factor=1
        )
        return host, gpu

    return estimates


@pytest.mark.parametrize("ranks", [1, 2, 8, 64])
def test_stage_2_is_deepspeeds_estimate_but_for_the_gradients_of_an_update(deepspeed_estimates, ranks):
    _, gpu = deepspeed_estimates(2, ranks, HERE)
    # it counts gradients twice, in bfloat16 and in float32: the latter exist while AdamW works, and are in `update`
    assert zero(SIZES, 2, ranks, 2, HERE).states + 4 * P / ranks == gpu
    assert zero(SIZES, 2, ranks, 2, HERE).update >= 4 * P / ranks
    # added up in float32 they are there all the time, and none are kept in bfloat16
    assert zero(SIZES, 2, ranks, 2, HERE, accumulated=4).states + 2 * P / ranks == gpu


@pytest.mark.parametrize("ranks", [1, 2, 8, 64])
def test_stage_3_is_deepspeeds_estimate_with_gradients_in_float32(deepspeed_estimates, ranks):
    _, gpu = deepspeed_estimates(3, ranks, HERE)
    assert zero(SIZES, 3, ranks, 2, HERE, accumulated=4).states == gpu
    assert zero(SIZES, 3, ranks, 2, HERE).states + 2 * P / ranks == gpu  # those in bfloat16 are half as large


@pytest.mark.parametrize("ranks", [4, 8])
def test_what_is_offloaded_leaves_the_gpu_and_all_ranks_of_a_node_have_it_in_memory(deepspeed_estimates, ranks):
    host, gpu = deepspeed_estimates(3, ranks, AWAY)
    ours = zero(SIZES, 3, ranks, 2, AWAY)
    assert (ours.states, ours.gradients, ours.optimizer) == (gpu, 0, 0)
    # 16 B a parameter by its estimate: two moments, the copy and its gradients; bfloat16 gradients are there, too
    assert ours.host * ranks == pytest.approx(18 * P)
    assert host == 16 * P
    everything = Offload(optimizer="cpu", parameters="cpu")
    host, gpu = deepspeed_estimates(3, ranks, everything)
    assert zero(SIZES, 3, ranks, 2, everything).states == gpu == 0
    assert zero(SIZES, 3, ranks, 2, everything).host * ranks == pytest.approx(host + 2 * P) == pytest.approx(20 * P)


def test_stage_2_offloaded_keeps_its_weights_and_a_second_copy_on_their_way(deepspeed_estimates):
    host, gpu = deepspeed_estimates(2, 2, AWAY)
    ours = zero(SIZES, 2, 2, 2, AWAY)
    assert ours.states == gpu == 2 * P
    assert host == 16 * P
    assert ours.host * 2 == pytest.approx(20 * P + 2 * 2 * SIZES.largest)  # and a buffer for the tensor on its way


@pytest.mark.parametrize(
    ("stage", "weight", "accumulated", "expected"),
    [
        (0, 4, None, (4, 4, 8)),
        (0, 2, None, (2, 2, 12)),
        (1, 4, None, (4, 4, 12 / 4)),
        (1, 2, None, (2, 2, 12 / 4)),
        (1, 2, 4, (2, 4, 12 / 4)),
        (2, 4, None, (4, 4 / 4, 12 / 4)),
        (2, 2, 4, (2, 4 / 4, 12 / 4)),
        (3, 4, None, (4 / 4, 4 / 4, 12 / 4)),
        (3, 2, 4, (2 / 4, 4 / 4, 12 / 4)),
    ],
)
def test_bytes_a_parameter_on_four_ranks(stage, weight, accumulated, expected):
    found = zero(SIZES, stage, 4, weight, HERE, accumulated)
    assert tuple(each / P for each in (found.weights, found.gradients, found.optimizer)) == expected


def test_the_update_of_stage_3_goes_group_by_group_and_its_bucket_stays():
    found = zero(SIZES, 3, 2, 2, HERE)
    group = SUB_GROUP + SIZES.largest / 2
    assert found.update == pytest.approx(500_000_000 * 2 + group * (2 + 4))  # flattened in bfloat16, then float32
    assert zero(SIZES, 3, 2, 2, HERE, accumulated=4).update == pytest.approx(500_000_000 * 2 + group * 4)
    assert zero(SIZES, 3, 64, 2, HERE).update == pytest.approx(500_000_000 * 2 + P / 64 * 6)  # less than a group


def test_gathered_weights_are_bounded():
    found, small = (zero(Sizes(count, 0, 1000, 1000), 3, 2, 2, HERE) for count in (P, 300_000))
    buckets = 500_000_000 * 2 * 2
    assert found.backward == buckets + 1_050_000_000 * 2
    assert small.backward == 300_000 * 2 * 2 + 300_000 * 2


def test_an_adapter_has_few_states_and_its_model_is_sharded_with_it():
    sizes = Sizes(trained=100_000_000, frozen=P, largest=1_000_000, widest=500_000_000)
    found = zero(sizes, 3, 8, 2, HERE)
    assert found.weights == 2 * (P + 100_000_000) / 8
    assert found.gradients + found.optimizer == 14 * 100_000_000 / 8
