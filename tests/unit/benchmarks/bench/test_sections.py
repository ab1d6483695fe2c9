"""The sections that need no Ray, with little work: they find a number for everything that they say."""

import importlib
import math

import pytest
import torch


@pytest.mark.parametrize("name", ["critic", "data", "score"])
def test_a_section_measures(name):
    threads = torch.get_num_threads()
    section = importlib.import_module(f"benchmarks.bench.{name}").measure(smoke=True)
    assert torch.get_num_threads() == threads
    assert section.name == name
    assert section.ratios
    values = [value for ratio in section.ratios for value in ratio.values] + list(section.figures.values())
    assert all(math.isfinite(value) and value > 0 for value in values)
