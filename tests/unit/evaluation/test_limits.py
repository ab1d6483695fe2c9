"""Whether a limit was kept, against values worked by hand."""

import pytest

from castor.evaluation.limits import limit_on
from castor.reports.limits import tone_with_limits


def test_a_share_and_its_interval() -> None:
    """2 of 100 are unsafe; Wilson's 95 % interval of that is 0.55 to 7.00 % (Newcombe 1998, method 3)."""
    found = limit_on("share", 0.03, None, training=[1.0] * 2 + [0.0] * 98, held_out=None, seed=0)
    assert found.held_out is None
    assert found.training is not None
    assert (found.training.value, found.training.n) == (0.02, 100)
    assert (found.training.low, found.training.high) == (
        pytest.approx(0.0055, abs=1e-4),
        pytest.approx(0.0700, abs=1e-4),
    )
    assert (found.training.kept, found.training.clear) == (True, False)
    assert found.decisive == found.training


def test_a_cost_of_zero_is_safe() -> None:
    found = limit_on("share", 0.5, None, training=[0.0] * 50, held_out=[0.0] * 50, seed=0)
    assert found.held_out is not None
    assert (found.held_out.value, found.held_out.kept, found.held_out.clear) == (0.0, True, True)


@pytest.mark.parametrize(
    ("costs", "kept", "clear"),
    [([-1.0, -2.0] * 20, True, True), ([1.0, 2.0] * 20, False, True), ([-1.0, 1.2] * 4, False, False)],
    ids=["kept", "broken", "broken by chance"],
)
def test_a_mean_is_clear_when_its_interval_does_not_hold_the_limit(costs: list[float], kept: bool, clear: bool) -> None:
    found = limit_on("mean", 0.0, None, training=[], held_out=costs, seed=0)
    assert found.training is None
    assert found.held_out is not None
    assert (found.held_out.kept, found.held_out.clear) == (kept, clear)


def test_with_a_confidence_its_upper_bound_must_keep_the_limit() -> None:
    """2 of 100: the one-sided 95 % Wilson bound is 5.8 %, above 3 %."""
    costs = [1.0] * 2 + [0.0] * 98
    assert not limit_on("share", 0.03, 0.95, training=costs, held_out=costs, seed=0).decisive.kept  # type: ignore[union-attr]
    assert limit_on("share", 0.06, 0.95, training=costs, held_out=costs, seed=0).decisive.kept  # type: ignore[union-attr]


def test_a_bound_of_high_confidence_that_is_missed_is_not_clearly_broken() -> None:
    """0 of 200: the 95 % interval ends at 1.9 %, the one-sided 99 % bound at 2.6 %."""
    found = limit_on("share", 0.02, 0.99, training=[0.0] * 200, held_out=None, seed=0).training
    assert found is not None
    assert found.high < 0.02
    assert (found.kept, found.clear) == (False, False)


def test_a_headline_is_no_better_than_the_limits_above_it() -> None:
    assert tone_with_limits("good", []) == "good"
