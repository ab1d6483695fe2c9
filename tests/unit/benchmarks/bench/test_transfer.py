"""Weights of the bench's section on transfer."""

from math import prod

from benchmarks.bench.transfer import shapes


def test_the_largest_weights_are_those_of_about_a_hundred_million_parameters():
    assert 0.95e8 < sum(prod(shape) for _, shape in shapes("100M", lora=False)) < 1.05e8


def test_an_adapter_has_two_factors_for_every_linear_layer_but_the_head():
    whole = [name for name, shape in shapes("3M", lora=False) if "_proj" in name]
    assert [name for name, _ in shapes("3M", lora=True)] == [
        name.replace("weight", f"lora_{factor}.weight") for name in whole for factor in "AB"
    ]
