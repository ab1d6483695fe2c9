"""Lengths of responses."""

import numpy as np
import pytest

from castor.planner.lengths import Lengths


@pytest.mark.parametrize("spread", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("mean", "cap"), [(20, 512), (256, 512), (480, 512)])
def test_the_mean_is_that_after_the_cut(mean, cap, spread):
    drawn = Lengths(mean, cap, spread).draw(200_000, np.random.default_rng(0))
    assert drawn.min() >= 1
    assert drawn.max() <= cap
    assert drawn.mean() == pytest.approx(mean, rel=0.01)


def test_a_mean_at_the_cap_has_all_responses_cut():
    assert set(Lengths(512, 512).draw(10, np.random.default_rng(0))) == {512}


def test_the_seed_decides():
    first, second = (Lengths(100, 512).draw(50, np.random.default_rng(3)) for _ in range(2))
    assert (first == second).all()
