"""The statistics that normalise scores: right over batches and ranks, and never rounded or moved off a cost's zero."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import multiprocessing, nn

from castor.models.normalizer import Normalizer

batches = st.lists(st.lists(st.floats(-50, 50), max_size=7), min_size=1, max_size=6)


@given(batches)
def test_running_statistics_are_those_of_everything_seen(parts):
    normalizer = Normalizer("reward", "running", 0.9)
    for part in parts:
        normalizer.update(torch.tensor(part, dtype=torch.float64))
    seen = np.array([value for part in parts for value in part])
    assert int(normalizer.count) == len(seen)
    mean, std = normalizer.constants()
    assert mean == pytest.approx(seen.mean() if len(seen) else 0.0, abs=1e-9)
    assert std == pytest.approx(seen.std(ddof=1) if len(seen) > 1 else 1.0, abs=1e-6)


@given(batches, st.floats(0, 0.99))
def test_the_moving_average_starts_from_zero_and_one(parts, momentum):
    normalizer, mean, var = Normalizer("reward", "ema", momentum), 0.0, 1.0
    for part in parts:
        normalizer.update(torch.tensor(part, dtype=torch.float64))
        if part:
            mean = momentum * mean + (1 - momentum) * float(np.mean(part))
        if len(part) > 1:
            var = momentum * var + (1 - momentum) * float(np.var(part, ddof=1))
    assert normalizer.constants() == pytest.approx((mean, var**0.5), abs=1e-6)


def test_a_reward_is_shifted_and_a_cost_only_scaled():
    scores = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    for score_type, shift in (("reward", 3.0), ("cost", 0.0)):
        normalizer = Normalizer(score_type, "running", 0.9)
        normalizer.update(scores)
        std = float(scores.detach().std())  # around the mean, for a cost too
        torch.testing.assert_close(normalizer(scores), (scores - shift) / std)
        assert normalizer(torch.zeros(1)).item() == pytest.approx(-shift / std)
    normalizer(scores).sum().backward()
    torch.testing.assert_close(scores.grad, torch.full((3,), 1 / std))  # the statistics take no gradient


def test_a_cast_model_keeps_its_statistics_exact():
    model = nn.Module()
    model.normalizer = Normalizer("cost", "running", 0.9)
    model.normalizer.update(torch.tensor([0.1, 0.2, 0.7]))
    before = model.normalizer.constants()
    model.bfloat16()
    assert model.normalizer.mean.dtype == torch.float64
    assert model.normalizer.constants() == before
    copy = nn.Module()
    copy.normalizer = Normalizer("cost", "running", 0.9)
    copy.load_state_dict(model.state_dict())
    assert copy.normalizer.constants() == before
    assert int(copy.normalizer.count) == 3


def _rank(rank, path, parts):
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    normalizer = Normalizer("reward", "running", 0.9)
    for part in parts[rank]:
        normalizer.update(torch.tensor(part))
    torch.save(normalizer.state_dict(), f"{path}/{rank}")
    dist.destroy_process_group()


def test_all_ranks_have_the_statistics_of_all(tmp_path):
    """Also where one has nothing in a batch."""
    parts = [[[1.0, 2.0], []], [[5.0], [7.0, -3.0]]]
    multiprocessing.start_processes(_rank, (str(tmp_path), parts), nprocs=2, start_method="fork")
    seen = np.array([1, 2, 5, 7, -3])
    for rank in range(2):
        state = torch.load(tmp_path / str(rank))
        assert (float(state["mean"]), float(state["var"])) == pytest.approx((seen.mean(), seen.var(ddof=1)))
        assert int(state["count"]) == 5
